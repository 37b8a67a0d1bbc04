"""Any rule on values of any class: as near the float64 result as inputs a few roundings away would bring it."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from soak.examples import SOAK, examples
from soak.rules import RULES, draw_rule
from soak.tensors import LAYOUTS, VALUES, place, values

from fastcfg import CFG, Rule, State, guide

randoms = st.randoms(use_true_random=False)
PLAIN = [r for r in RULES if not r.prepares and r.lowered.domain is None and not r.scheduled]
ROUNDINGS = 64
"""How many roundings of the inputs stand for those of a call: sums of some thousand elements, weights and combine."""


def nearby(tensors: dict[str, torch.Tensor], unit: float, seed: int) -> dict[str, torch.Tensor]:
    """Each element up to a unit away, beside its own size and the largest of its kind."""
    made = torch.Generator().manual_seed(seed)

    def moved(t: torch.Tensor) -> torch.Tensor:
        size = t.abs() + 2.0**-6 * t.abs().amax()
        return t + unit * size * (2 * torch.rand(t.shape, dtype=t.dtype, generator=made) - 1)

    return {name: moved(t) for name, t in tensors.items()}


def check_backward(rule: Rule, backend: str, dtype: torch.dtype, rng: Random) -> None:
    shape = (rng.randint(1, 3), rng.choice((1, 3, 4)), rng.choice((1, 5, 8, 33)), rng.choice((2, 7, 16, 40)))
    noise = np.random.default_rng(rng.randrange(2**31))
    common = noise.normal(size=shape) + noise.normal()
    kinds = [rng.choice(VALUES) for _ in rule.conditions]
    if "project" in type(rule).__module__ or isinstance(getattr(rule, "rule", None), Rule):
        # Projections on a prediction far smaller than the others lose digits of it: not yet better.
        kinds = [kinds[0]] * len(kinds)
    given = {}
    for name, kind in zip(rule.conditions, kinds, strict=True):
        content = values(noise, kind, shape, common).clamp(-6e4, 6e4).to(dtype)
        given[name] = place(content, rng.choice(LAYOUTS), rng).tensor
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    state = {n: torch.from_numpy(0.5 * noise.normal(size=shape)).to(acc) for n in rule.lowered.extras}
    told = f"{rule!r} {shape} {dtype} {backend} {kinds}"
    got = guide(rule, state=State(dict(state)), backend=backend, **given).double()
    wide = {name: t.double() for name, t in given.items()}
    before = {name: t.double() for name, t in state.items()}

    def exact(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return guide(rule, state=State(dict(before)), backend="torch", **tensors)

    expected = exact(wide)
    assert torch.equal(got.isfinite(), expected.to(dtype).isfinite()), f"{told}: not finite where float64 is"
    unit = 2.0**-50 if dtype == torch.float64 else 2.0**-22
    spread = torch.stack([(exact(nearby(wide, unit, k)) - expected).abs() for k in range(3)]).amax(0)
    spread = torch.maximum(spread, spread.amax(tuple(range(1, spread.dim())), keepdim=True) * 2.0**-4)
    store = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    tiny = torch.finfo(dtype).smallest_normal
    bound = ROUNDINGS * spread + store * expected.abs() + 4 * tiny
    error = torch.where(got.isfinite(), (got - expected).abs(), 0.0)
    within = error <= bound.nan_to_num(float("inf"))
    assert bool(within.all()), f"{told}: error {error.max()}, bound {bound.flatten()[error.argmax()]}"


@given(st.sampled_from((torch.float32, torch.bfloat16, torch.float16, torch.float64)), randoms)
@examples(30)
def test_any_rule_on_torch(dtype: torch.dtype, rng: Random) -> None:
    rule: Any = draw_rule(rng) if rng.random() < 0.5 else rng.choice(PLAIN)
    if rule.prepares or rule.lowered.domain is not None or rule.scheduled:
        rule = rng.choice(PLAIN)
    check_backward(rule, "torch", dtype, rng)


@given(st.sampled_from((torch.float32, torch.bfloat16)), randoms)
@examples(10)
def test_any_rule_in_native_code(dtype: torch.dtype, rng: Random) -> None:
    rules = PLAIN if SOAK else PLAIN[:6]  # Each is compiled once.
    check_backward(rng.choice(rules), "cpp", dtype, rng)


def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = guide

    def broken(rule: Rule, **given: Any) -> torch.Tensor:
        result = whole(rule, **given)
        return result if result.dtype == torch.float64 else result * (1 + 2.0**-9)

    monkeypatch.setitem(globals(), "guide", broken)
    found = 0
    for seed in range(10):  # Where all predictions are zero, say, it can't be seen.
        try:
            check_backward(CFG(5.0, rescale=0.5), "torch", torch.float32, Random(seed))
        except AssertionError:
            found += 1
    assert found >= 7, found
