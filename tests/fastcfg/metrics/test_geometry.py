"""The geometry trace against norms and angles of the vectors themselves."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcfg import CFG, Clamp, DualCFG, InnerGuidance, NegativePrompt, PerpNeg, Rescale, Rule, guide, schedules
from fastcfg.metrics.geometry import Geometry, geometry

RULES = [
    CFG(7.5),
    CFG(7.5, rescale=0.7),
    CFG(2.0, base="cond"),
    NegativePrompt(4.0),
    DualCFG(5.0, 2.0),
    PerpNeg(5.0, (1.0, 0.5)),
    Rescale(PerpNeg(5.0, (1.0,)), 0.5, "l2"),
    InnerGuidance(5.0, 3.0),
    Clamp(CFG(1.5), 100.0),
]


def draw(rule: Rule, dtype: torch.dtype, delta: float = 0.5) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(5)
    common = rng.normal(size=(3, 4, 33, 40)) + 0.2
    return {n: torch.from_numpy(common + delta * rng.normal(size=common.shape)).to(dtype) for n in rule.conditions}


def direct(u: torch.Tensor, c: torch.Tensor, y: torch.Tensor) -> Geometry:
    u, c, y = (x.double().flatten(1) for x in (u, c, y))
    d = c - u
    nu, nc, nd, ny = (x.norm(dim=1) for x in (u, c, d, y))
    return Geometry(nu, nc, nd, (u * c).sum(1) / (nu * nc), (u * d).sum(1) / (nu * nd), ny, ny / nc)


def check(actual: Geometry, expected: Geometry, rtol: float) -> None:
    for name, values in vars(expected).items():
        mine = getattr(actual, name)
        assert mine.shape == (3,) and mine.dtype == (torch.float64 if rtol < 1e-10 else torch.float32)
        # Cosines near zero are wrong by a share of 1, not of themselves.
        torch.testing.assert_close(mine.double(), values, rtol=rtol, atol=rtol if name.startswith("cos") else 0)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_equals_the_vectors_own(rule: Rule, dtype: torch.dtype) -> None:
    p = draw(rule, dtype)
    exact = {name: x.double() for name, x in p.items()}
    y = guide(rule, backend="torch", **exact)
    base = "uncond" if "uncond" in p else "negative"
    # Sums over 5,280 elements: 4 sqrt(n/16) + 8 roundings, and the loss of w' G w to cancellation, below 10 here.
    rtol = 10 * (4 * math.sqrt(5280 / 16) + 8) * (2.0**-53 if dtype == torch.float64 else 2.0**-24)
    check(geometry(rule, **p), direct(exact[base], exact["cond"], y), rtol)


def test_small_deltas_keep_their_digits() -> None:
    p = draw(CFG(), torch.float32, delta=1e-5)
    u, c = (p[n].double() for n in ("uncond", "cond"))
    actual = geometry(CFG(7.5), **p).norm_delta
    torch.testing.assert_close(actual.double(), (c - u).flatten(1).norm(dim=1), rtol=1e-6, atol=0)


def test_parameters_by_sample_and_other_names() -> None:
    rule = DualCFG(5.0, 2.0)
    p = draw(rule, torch.float64)
    scale = torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)
    y = guide(rule, params={"scale": scale}, **p)
    check(geometry(rule, params={"scale": scale}, **p), direct(p["uncond"], p["cond"], y), 1e-12)
    actual = geometry(rule, origin="negative", target="uncond", **p)
    check(actual, direct(p["negative"], p["uncond"], guide(rule, **p)), 1e-12)


def test_degenerate_predictions() -> None:
    zero, one = torch.zeros(2, 8), torch.ones(2, 8)
    trace = geometry(CFG(3.0), uncond=zero, cond=zero)
    assert trace.gain.tolist() == [1, 1] and trace.cos_uncond_cond.tolist() == [0, 0]
    trace = geometry(CFG(3.0), uncond=one, cond=one)
    assert (
        trace.norm_delta.tolist() == [0, 0]
        and trace.gain.tolist() == [1, 1]
        and trace.cos_uncond_delta.tolist() == [0, 0]
    )
    assert geometry(CFG(3.0), uncond=one, cond=zero).gain.tolist() == [math.inf] * 2
    large = torch.full((1, 4096), 30000.0, dtype=torch.float16)
    norm = geometry(CFG(3.0), uncond=-large, cond=large).norm_guided.item()  # Beyond float16's largest number.
    assert math.isclose(norm, 5 * 30000 * 64, rel_tol=1e-6)


def test_nothing_is_read_back() -> None:
    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert "_local_scalar_dense" not in str(func) and "nonzero" not in str(func), func
            return func(*args, **(kwargs or {}))

    p = draw(RULES[5], torch.float32)
    with NoSync():
        trace = geometry(RULES[5], params={"scale": torch.tensor([1.0, 2.0, 3.0])}, **p)
    assert set(trace.to_dict()) == set(Geometry.__dataclass_fields__)


def test_compiles() -> None:
    rule = RULES[1]
    p = draw(rule, torch.float32)
    expected = geometry(rule, **p).gain
    compiled = torch.compile(lambda u, c: geometry(rule, uncond=u, cond=c).gain, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(p["uncond"], p["cond"]), expected)


P = draw(CFG(), torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometry(7, **P), "rule: expected a fastcfg rule"),
        (lambda: geometry(CFG(), uncond=P["uncond"]), r"missing \['cond'\]"),
        (lambda: geometry(CFG(), target="image", **P), r"target: expected one of \['uncond', 'cond'\], got 'image'"),
        (lambda: geometry(CFG(), origin="image", **P), r"origin: expected a prediction of \['uncond', 'cond'\]"),
        (lambda: geometry(CFG(), params={"w": 1.0}, **P), r"params: CFG has \['scale'\]"),
        (lambda: geometry(CFG(schedules.Ramp(1, 2)), **P), "scale: is a schedule"),
        (lambda: geometry(CFG(), uncond=P["uncond"].long(), cond=P["cond"]), "uncond: expected a floating tensor"),
        (lambda: geometry(CFG(), uncond=P["uncond"][:1], cond=P["cond"]), "cond: expected the shape"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()  # type: ignore[operator]
