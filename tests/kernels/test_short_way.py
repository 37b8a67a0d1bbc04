"""The short way of common calls gives the long way's bits, or leaves the call to it."""

from collections.abc import Callable

import fastcfg_kernels as fk
import pytest
import torch
from fastcfg_kernels.backends.cpu import entry

import fastcfg
from fastcfg import APG, CFG, MultiCondition

RULES = {
    "CFG": CFG(3.5),
    "CFG of cond": CFG(3.5, base="cond"),
    "rescale": CFG(3.5, rescale=0.7),
    "APG": APG(3.5, eta=0.4, norm_threshold=2.0),
    "no lerp": fastcfg.Linear((("uncond", 0.5), ("cond", 2.0))),
    "three": fastcfg.PerpNeg(4.0),
}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(params=["extension", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[fastcfg.Rule], fk.ShortWay]:
    """A rule's short way, compiled or in Python, that has met each dtype's function."""
    compiled = request.param == "extension"
    if compiled and entry.extension() is None:
        pytest.skip("Python's headers, a compiler or torch's DLPack interface are missing")
    monkeypatch.setattr(entry, "_ready", entry.extension if compiled else lambda: None)

    def made(rule: fastcfg.Rule) -> fk.ShortWay:
        way = entry.ShortWay(rule.program)
        for dtype, function in fk.short_way(rule.program)._native.items():
            way.add(dtype, function)
        return way

    return made


def draw(rule: fastcfg.Rule, dtype: torch.dtype, size: tuple[int, ...] = (3, 2, 33, 5)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=generator).to(dtype) for name in rule.conditions}


def long(rule: fastcfg.Rule, given: dict[str, torch.Tensor], params: dict[str, object] | None) -> torch.Tensor:
    values = [(params or {}).get(n, v) for n, v in zip(rule.program.params, rule.numbers, strict=True)]
    checked = [fk.check_param("", v, 3, torch.device("cpu")) for v in values]
    tensors = [given[name] for name in rule.program.predictions]
    return fk.guide_checked(tensors, rule.program, checked)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_the_bits_are_those_of_the_long_way(name: str, dtype: torch.dtype, way: Callable) -> None:
    rule = RULES[name]
    given = draw(rule, dtype)
    scales = torch.tensor([1.25, -3.0, 7.5])
    overrides = [None]
    if "scale" in rule.program.params:
        many = [scales, scales[:1], scales.double(), scales.half(), scales.bfloat16(), scales.repeat(2)[::2]]
        overrides += [{"scale": v} for v in (2.25, 3, torch.tensor(0.3), torch.tensor(-1.7).half(), *many)]
    expected = [long(rule, given, params) for params in overrides]
    short = way(rule)
    for params, right in zip(overrides, expected, strict=True):
        got = short.guide(given, rule.numbers, params, None)
        if got is None and params and type(params["scale"]) is int:
            continue
        assert got is not None and torch.equal(got, right) and got.dtype == dtype
        out = torch.empty_like(right)
        assert short.guide(given, rule.numbers, params, out) is out and torch.equal(out, right)
        last = rule.conditions[-1]
        over = {**given, last: given[last].clone()}
        assert torch.equal(short.guide(over, rule.numbers, params, over[last]), right)


U, C = torch.randn(2, 2, 3, 40).unbind(0)
REFUSED: dict[str, Callable[[], tuple[dict[str, object], object, object]]] = {
    "another name": lambda: ({"uncond": U, "other": C}, None, None),
    "one too few": lambda: ({"uncond": U}, None, None),
    "another shape": lambda: ({"uncond": U, "cond": C[:1]}, None, None),
    "another dtype": lambda: ({"uncond": U, "cond": C.double()}, None, None),
    "integers": lambda: ({"uncond": U.int(), "cond": C.int()}, None, None),
    "no tensor": lambda: ({"uncond": U, "cond": 1.0}, None, None),
    "one dimension": lambda: ({"uncond": U[0, 0], "cond": C[0, 0]}, None, None),
    "strides": lambda: ({"uncond": U[..., ::2], "cond": C[..., ::2]}, None, None),
    "empty": lambda: ({"uncond": U[:0], "cond": C[:0]}, None, None),
    "gradient": lambda: ({"uncond": U.clone().requires_grad_(), "cond": C}, None, None),
    "negative view": lambda: ({"uncond": torch.complex(U, C).conj().imag, "cond": C}, None, None),
    "sparse": lambda: ({"uncond": U.to_sparse(), "cond": C}, None, None),
    "meta": lambda: ({"uncond": U.to("meta"), "cond": C.to("meta")}, None, None),
    "unknown parameter": lambda: ({"uncond": U, "cond": C}, {"strength": 1.0}, None),
    "infinite": lambda: ({"uncond": U, "cond": C}, {"scale": float("inf")}, None),
    "truth value": lambda: ({"uncond": U, "cond": C}, {"scale": True}, None),
    "a scale for each of three": lambda: ({"uncond": U, "cond": C}, {"scale": torch.ones(3)}, None),
    "a scale for each element": lambda: ({"uncond": U, "cond": C}, {"scale": torch.ones(2, 1)}, None),
    "integer scales": lambda: ({"uncond": U, "cond": C}, {"scale": torch.ones(2).int()}, None),
    "a scale's gradient": lambda: ({"uncond": U, "cond": C}, {"scale": torch.ones(2, requires_grad=True)}, None),
    "out of another shape": lambda: ({"uncond": U, "cond": C}, None, torch.empty(1, 3, 40)),
    "out shifted": lambda: ({"uncond": U, "cond": C}, None, U.view(-1)[1:].as_strided(U.shape, U.stride())),
    "out expanded": lambda: ({"uncond": U, "cond": C}, None, torch.empty(1, 3, 40).expand(2, 3, 40)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_calls_are_left_to_the_long_way(kind: str, way: Callable) -> None:
    rule = CFG(3.0, rescale=0.5)
    long(rule, {"uncond": U, "cond": C}, None)
    short = way(rule)
    given = REFUSED[kind]()
    assert short.guide({"uncond": U, "cond": C}, rule.numbers, None, None) is not None
    assert short.guide(given[0], rule.numbers, *given[1:]) is None


def test_the_environment_and_shadow_mode_close_it(way: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = CFG(3.0)
    short, given = way(rule), {"uncond": U, "cond": C}
    assert short.guide(given, rule.numbers, None, None) is not None
    monkeypatch.setenv("FASTCFG_BACKEND", "torch")
    assert short.guide(given, rule.numbers, None, None) is None
    monkeypatch.delenv("FASTCFG_BACKEND")
    try:
        fk.shadow("warn")
        assert short.guide(given, rule.numbers, None, None) is None
    finally:
        fk.shadow("off")
    assert short.guide(given, rule.numbers, None, None) is not None


def test_a_rule_with_schedules_or_memory_has_none() -> None:
    assert CFG(fastcfg.schedules.Ramp(1.0, 2.0)).short is None
    assert APG(3.0, momentum=-0.5).short is None
    assert MultiCondition().short is not None
