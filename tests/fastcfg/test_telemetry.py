"""Figures of guidance beside float64, results that telemetry leaves as they are, and no wait for a device."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conformance.cases import BY_NAME, Case, draw
from torch.utils._python_dispatch import TorchDispatchMode

import fastcfg
from fastcfg import (
    APG,
    CFG,
    FDG,
    CFGZeroStar,
    Clamp,
    InDomain,
    MaMBOG,
    NormCap,
    PerpNeg,
    Prediction,
    Rescale,
    Rule,
    Sampler,
    State,
    guide,
)
from fastcfg.telemetry import FIGURES, Telemetry

BACKENDS = ["torch", "cpp", "triton"]
SHAPE = (2, 4, 24, 24)
ROUNDINGS = 256 * torch.finfo(torch.float32).eps
"""What the order of float32 sums may come to, as in :mod:`fastcfg_kernels.shadow`."""


def predictions(rule: Rule, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    return draw(rule.conditions, shape, dtype)


def figures(rule: Rule, named: dict[str, Any], **options: Any) -> dict[str, np.ndarray]:
    """The figures of one call, by sample."""
    telemetry = Telemetry(sums="gram")
    guide(rule, **named, telemetry=telemetry, **options)
    return dict(telemetry.drain().figures)


def arrays(named: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: t.double().flatten(1).numpy() for name, t in named.items()}


def norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x * x).sum(1))


def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * y).sum(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["CFG", "CFG(rescale)", "PerpNeg_2", "CFG+clamp"])
def test_lengths_and_angles(name: str, backend: str) -> None:
    case: Case = BY_NAME[name]
    named = predictions(case.rule)
    told, p = figures(case.rule, named, backend=backend), arrays(named)
    base, target = p[case.conditions[0]], p["cond"]
    d = target - base
    np.testing.assert_allclose(told["delta_ratio"], norm(d) / norm(base), rtol=1e-10)
    np.testing.assert_allclose(told["cosine_base"], dot(d, base) / norm(d) / norm(base), atol=1e-10)
    np.testing.assert_allclose(told["cosine_target"], dot(d, target) / norm(d) / norm(target), atol=1e-10)
    if name != "CFG+clamp":
        y = case.oracle({n: t.numpy() for n, t in named.items()}).reshape(SHAPE[0], -1)
        np.testing.assert_allclose(told["norm_ratio"], norm(y) / norm(target), rtol=1e-9)
    assert not told["degenerate"].any() and not told["nonfinite"].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lengths_in_float32(dtype: torch.dtype, backend: str) -> None:
    rule = CFG(5.0, rescale=0.7)
    named = predictions(rule, dtype)
    told, p = figures(rule, named, backend=backend), arrays(named)
    d = p["cond"] - p["uncond"]
    np.testing.assert_allclose(told["delta_ratio"], norm(d) / norm(p["uncond"]), rtol=ROUNDINGS)
    np.testing.assert_allclose(told["cosine_base"], dot(d, p["uncond"]) / norm(d) / norm(p["uncond"]), atol=ROUNDINGS)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_each_rule_tells_of_its_own_doing(backend: str) -> None:
    named = predictions(CFG())
    p = arrays(named)
    u, c, d = p["uncond"], p["cond"], p["cond"] - p["uncond"]

    def told(rule: Rule, name: str, **options: Any) -> np.ndarray:
        return figures(rule, named, backend=backend, **options)[name]

    threshold = float(norm(d).mean())  # Between the samples' norms: one is shortened.
    apg = APG(7.5, eta=0.3, norm_threshold=threshold)
    limit = np.minimum(1, threshold / norm(d))
    np.testing.assert_allclose(told(apg, "limit"), limit, rtol=1e-10)
    np.testing.assert_array_equal(told(apg, "limited"), limit < 1)
    assert 0 < told(apg, "limited").sum() < SHAPE[0]
    np.testing.assert_allclose(told(apg, "projection"), dot(c, d) / dot(c, c), rtol=1e-9)

    state = State({"average": named["uncond"] - 2 * named["cond"]})
    average = u - 2 * c
    step = d - 0.5 * average
    momentum = APG(7.5, eta=0.3, norm_threshold=1.0, momentum=-0.5)
    np.testing.assert_allclose(told(momentum, "limit", state=state), 1 / norm(step), rtol=1e-9)

    np.testing.assert_allclose(told(CFGZeroStar(4.0, 0), "projection"), dot(c, u) / (dot(u, u) + 1e-8), rtol=1e-10)
    np.testing.assert_allclose(told(MaMBOG(alpha=1.5), "limit"), np.exp(-1.5 * norm(d) / norm(u)), rtol=1e-10)

    y = u + 5 * d
    factor = 0.3 + 0.7 * c.std(1) / y.std(1)
    np.testing.assert_allclose(told(CFG(5.0, rescale=0.7), "factor"), factor, rtol=1e-10)
    np.testing.assert_allclose(told(CFG(5.0, rescale=0.7), "delta_weight"), 5 * factor, rtol=1e-10)
    np.testing.assert_allclose(told(CFG(5.0, rescale=0.7), "spread_ratio"), factor * y.std(1) / c.std(1), rtol=1e-10)
    cap = 0.5 * float((norm(y) / norm(c)).sum())
    np.testing.assert_allclose(told(NormCap(CFG(5.0), cap), "factor"), np.minimum(1, cap * norm(c) / norm(y)))
    np.testing.assert_array_equal(told(NormCap(CFG(5.0), cap), "limited"), cap * norm(c) < norm(y))
    assert np.isnan(told(NormCap(CFG(5.0), cap, mode="full"), "limited")).all(), "which is no cap"
    twice = NormCap(APG(7.5, norm_threshold=threshold), 1e9)
    np.testing.assert_array_equal(told(twice, "limited"), limit < 1, "the cap does not hide the limit")

    bound = 2 * c.std(1, ddof=1)
    root = np.sqrt((y * y).mean(1))
    np.testing.assert_allclose(told(Clamp(CFG(5.0), 2.0), "clamp_ratio"), root / bound, rtol=1e-10)


RULES: list[tuple[Rule, dict[str, Any]]] = [
    (CFG(3.0), {}),
    (CFG(3.0, rescale=0.7), {}),
    (Clamp(CFG(5.0), 1.0), {}),
    (PerpNeg(5.0, (1.0,)), {}),
    (APG(7.5, 0.3, 5.0), {}),
    (APG(7.5, 0.3, 5.0, -0.5, base="cond"), {"state": None}),
    (APG(7.5, 0.3, 5.0, dims=(-1,)), {}),
    (CFGZeroStar(4.0, 0), {}),
    (MaMBOG(base="cond"), {}),
    (NormCap(CFG(5.0), over="token"), {}),
    (Rescale(CFG(5.0), 0.7), {"mask": torch.arange(24) < 20}),
    (Rescale(CFG(5.0), 0.7), {"scale_map": torch.linspace(0, 1, 24)}),
    (InDomain(Rescale(CFG(5.0), 0.7), "x0"), {"prediction": Prediction("eps", alpha=0.8, sigma=0.6)}),
    (FDG((3.0, 5.0)), {}),
]


@pytest.mark.parametrize("backend", [None, "torch", "triton"])
@pytest.mark.parametrize("number", range(len(RULES)), ids=lambda k: type(RULES[k][0]).__name__)
def test_results_are_the_same_bits(number: int, backend: str | None) -> None:
    rule, options = RULES[number]
    dtype = (torch.float32, torch.bfloat16)[number % 2]  # Native code takes a second to build for each.
    named = predictions(rule, dtype, (2, 3, 16, 24))
    given = {**options, "backend": backend}
    if "prediction" in given:
        given["x"] = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)).to(dtype)

    def guided(telemetry: Telemetry | None) -> torch.Tensor:
        state = {"state": State()} if "state" in given else {}
        return guide(rule, **named, telemetry=telemetry, **(given | state))

    expected = guided(None)
    for sums, told in (("gram", True), ("rule", rule.program.reduces)):
        telemetry = Telemetry(sums=sums)  # type: ignore[arg-type]
        assert torch.equal(guided(telemetry), expected) and telemetry.calls == 1
        assert len(telemetry.drain()) == 2 * (told and not isinstance(rule, FDG))


def test_a_result_may_take_the_place_of_a_prediction() -> None:
    named = predictions(CFG(), torch.float32)
    expected = guide(CFG(), **named)
    telemetry = Telemetry(sums="gram")
    length = norm(arrays(named)["uncond"])
    assert guide(CFG(), **named, out=named["uncond"], telemetry=telemetry) is named["uncond"]
    assert torch.equal(named["uncond"], expected)
    told = telemetry.drain().figures
    reached = told["norm_ratio"] * norm(arrays(named)["cond"])
    np.testing.assert_allclose(reached, norm(expected.double().flatten(1).numpy()), rtol=ROUNDINGS)
    delta = norm(arrays(predictions(CFG(), torch.float32))["uncond"] - arrays(named)["cond"])
    np.testing.assert_allclose(told["delta_ratio"], delta / length, rtol=ROUNDINGS)


def test_a_step_of_a_solver_records_its_own_number() -> None:
    telemetry = Telemetry()
    levels = [((a, (1 - a * a) ** 0.5), (b, (1 - b * b) ** 0.5)) for a, b in pairwise((0.1, 0.4, 0.6, 0.8, 0.95))]
    step = Sampler.from_levels(levels, kind="eps").steps[2]
    named = predictions(CFG(), torch.float32)
    x = torch.randn(SHAPE)
    rule = CFG(3.0, rescale=0.7)
    told = fastcfg.guide_step(rule, step, x=x, telemetry=telemetry, **named)
    assert torch.equal(told, fastcfg.guide_step(rule, step, x=x, **named))
    assert telemetry.drain().step.tolist() == [2, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_and_infinite_samples(backend: str) -> None:
    named = predictions(CFG(), torch.float32)
    u, c = named["uncond"], named["cond"]
    rule = CFG(3.0, rescale=0.7)
    c[0] = u[0]
    told = figures(rule, named, backend=backend)
    assert told["degenerate"].tolist() == [1, 0] and told["delta_ratio"][0] == told["cosine_base"][0] == 0
    u[0] = c[0] = 2.0
    told = figures(rule, named, backend=backend)
    assert told["degenerate"].tolist() == [1, 0] and told["factor"][0] == 1
    c[1, 0, 0, 0] = torch.inf
    told = figures(rule, named, backend=backend)
    assert told["nonfinite"].tolist() == [0, 1]
    c[1, 0, 0, 0] = torch.nan
    told = figures(rule, named, backend=backend)
    assert told["nonfinite"].tolist() == [0, 1] and np.isnan(told["delta_ratio"][1])
    u[:], c[:] = 0.0, 1.0
    assert figures(APG(3.0), named, backend=backend)["degenerate"].tolist() == [1, 1]


def test_every_so_many_calls() -> None:
    named, telemetry = predictions(CFG(), torch.float32), Telemetry(every=3)
    for _ in range(7):
        guide(CFG(rescale=0.5), **named, telemetry=telemetry)
    guide(CFG(), **named, telemetry=telemetry)  # In the eighth call's place, which is not recorded.
    found = telemetry.drain()
    assert found.call.tolist() == [0, 0, 1, 1, 2, 2] and found.sample.tolist() == [0, 1] * 3
    numbers = telemetry.to_dict()
    assert numbers["calls"] == 8 and numbers["recorded_calls"] == 3 and sum(numbers["backends"].values()) == 3


def test_the_mean_of_a_samples_groups() -> None:
    """Norms of tokens: a record for each sample, hits being the share of its tokens."""
    rule = NormCap(CFG(5.0), over="token")
    named = predictions(rule, torch.float64, (2, 6, 8))
    u, c = (named[n].numpy() for n in rule.conditions)
    y = u + 5 * (c - u)
    factor = np.linalg.norm(c, axis=-1) / np.linalg.norm(y, axis=-1)
    told = figures(rule, named)
    np.testing.assert_allclose(told["factor"], np.minimum(1, factor).mean(1), rtol=1e-10)
    np.testing.assert_allclose(told["limited"], (factor < 1).mean(1), rtol=1e-12)


def test_frames_are_recorded_each_by_itself() -> None:
    rule, telemetry = CFG(rescale=0.7), Telemetry()
    named = predictions(rule, torch.float32, (2, 3, 4, 8, 8))
    scales = torch.tensor([1.5, 3.0, 4.0, 7.0])
    for frame_dim, group in ((2, "frame"), (2, "sample")):
        options: dict[str, Any] = {"frame_dim": frame_dim, "group": group}
        told = fastcfg.guide_frames(rule, scales, telemetry=telemetry, **options, **named)
        assert torch.equal(told, fastcfg.guide_frames(rule, scales, **options, **named))
    found = telemetry.drain()
    assert found.sample.tolist() == [0] * 4 + [1] * 4 + [0, 1]
    assert found.group.tolist() == [0, 1, 2, 3] * 2 + [-1, -1]
    u, c = (named[n].double().transpose(1, 2).flatten(2) for n in rule.conditions)
    expected = ((c - u).norm(dim=2) / u.norm(dim=2)).flatten().numpy()
    np.testing.assert_allclose(found.figures["delta_ratio"][:8], expected, rtol=ROUNDINGS)


class _NoWait(TorchDispatchMode):
    """Fails where a value is read back from a device, or a size depends on one."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique_dim", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name.removeprefix("aten::") not in self.WAITS, func._schema.name
        return func(*args, **(kwargs or {}))


@contextmanager
def no_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def waits(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("waits for the device")

    with monkeypatch.context() as patched, _NoWait():
        for method in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
            patched.setattr(torch.Tensor, method, waits)
        yield


@pytest.mark.parametrize("rule", [CFG(3.0), CFG(3.0, rescale=0.7), APG(7.5, 0.3, 5.0, dims=(-1,))], ids=str)
def test_nothing_waits_for_the_device(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    named, telemetry = predictions(rule, torch.float32), Telemetry(capacity=5, sums="gram")
    params = {"scale": torch.tensor([2.0, 3.0])} if isinstance(rule, CFG) and rule.rescale else None
    for _ in range(4):  # The ring wraps.
        with no_wait(monkeypatch):
            guide(rule, **named, params=params, telemetry=telemetry, backend="torch")
    assert len(telemetry.read()) == 5
    with pytest.raises(AssertionError, match="waits"), no_wait(monkeypatch):
        float(named["uncond"].sum())


def test_traced_calls_are_left_alone() -> None:
    telemetry, named = Telemetry(sums="gram"), predictions(CFG(), torch.float32)
    rule = CFG(3.0, rescale=0.7)

    def guided(uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return guide(rule, uncond=uncond, cond=cond, telemetry=telemetry)

    class Module(torch.nn.Module):
        forward = staticmethod(guided)

    compiled = torch.compile(guided, fullgraph=True, backend="aot_eager")(**named)
    exported = torch.export.export(Module(), tuple(named.values())).module()(*named.values())
    assert len(telemetry.read()) == telemetry.calls == 0
    expected = guided(**named)
    assert len(telemetry.read()) == 2
    for result in (compiled, exported):
        torch.testing.assert_close(result, expected)


def test_gradients_pass() -> None:
    named = {name: t.requires_grad_() for name, t in predictions(CFG()).items()}
    telemetry = Telemetry()
    guide(CFG(3.0, rescale=0.7), **named, telemetry=telemetry).sum().backward()
    told = [t.grad for t in named.values()]
    for t in named.values():
        t.grad = None
    guide(CFG(3.0, rescale=0.7), **named).sum().backward()
    assert all(torch.equal(a, t.grad) for a, t in zip(told, named.values(), strict=True))
    assert len(telemetry.read()) == 2


LINE = re.compile(
    r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-zA-Z_][a-zA-Z0-9_]*="(\\.|[^"\\\n])*"(,[a-zA-Z_][a-zA-Z0-9_]*="(\\.|[^"\\\n])*")*\})?'
    r" (-?[0-9.]+(e[+-]?[0-9]+)?|[+-]Inf|NaN)"
)


def test_prometheus_text() -> None:
    telemetry = Telemetry()
    for scale in (2.0, 3.0):
        guide(CFG(scale, rescale=0.7), **predictions(CFG(), torch.float32), telemetry=telemetry)
    text = telemetry.to_prometheus({"model": 'a "b"\\\n'})
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert text.endswith("\n") and len(kinds) == text.count("# TYPE") == text.count("# HELP")
    for line in text.splitlines():
        if not line.startswith("#"):
            assert LINE.fullmatch(line), line
            name = re.sub(r"(_sum|_count)$", "", line.split("{")[0])
            assert name in kinds and name.endswith("_total") == (kinds[name] == "counter"), line
    assert 'fastcfg_delta_ratio{model="a \\"b\\"\\\\\\n",quantile="0.5"}' in text
    assert re.search(r"^fastcfg_delta_ratio_count\{.*\} 4$", text, re.M)
    assert telemetry.to_prometheus().splitlines()[2] == "fastcfg_calls_total 2"
    again = telemetry.to_dict()
    assert again["counts"]["delta_ratio"] == again["records"] == 4, "a record that is read twice counts once"
    assert json.loads(json.dumps(again)) == again


@pytest.mark.parametrize("name", ["a-b", "1st", "__own", "quantile", "reason", "", "é"])
def test_labels_that_prometheus_would_refuse(name: str) -> None:
    with pytest.raises(ValueError, match=r"^labels: expected names"):
        Telemetry().to_prometheus({name: "x"})


def test_records_as_dicts_and_quantiles() -> None:
    telemetry = Telemetry()
    for k in range(5):
        guide(CFG(float(k), rescale=0.7), **predictions(CFG(), torch.float32), telemetry=telemetry.at(k, ["a", "b"]))
    found = telemetry.read()
    first = found.to_dicts()[0]
    assert first.keys() == {"id", "call", "step", "sample"} | {
        name for name in FIGURES if not np.isnan(found.figures[name][0])
    }
    assert [found.to_dicts()[-1][k] for k in ("id", "call", "step", "sample")] == ["b", 4, 4, 1]
    weights = np.sort(found.figures["delta_weight"])
    summary = telemetry.summary((0.0, 0.5, 1.0))["delta_weight"]
    assert summary["p0"] == weights[0] and summary["p100"] == weights[-1] and summary["count"] == 10
    assert summary["p50"] == np.median(weights) and "limit" not in telemetry.summary()


@pytest.mark.parametrize("arguments", [{"every": 0}, {"capacity": 0}, {"capacity": 2.0}, {"sums": "all"}], ids=str)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Telemetry(**arguments)


def test_bad_telemetry() -> None:
    with pytest.raises(TypeError, match="telemetry: expected"):
        guide(CFG(), **predictions(CFG()), telemetry=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="telemetry: expected"):
        fastcfg.GuidedDenoiser(lambda x, t: x, CFG(), telemetry=3)  # type: ignore[arg-type]
