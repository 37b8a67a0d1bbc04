"""Random calls of ``guide``: values beside the float64 oracles, and what must hold of any call whatever its values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conformance.cases import CASES, Case
from conformance.field_cases import FIELD, check, grouped
from hypothesis import given, note
from hypothesis import strategies as st
from soak.examples import examples
from soak.rules import KINDS, draw_rule
from soak.tensors import LAYOUTS, VALUES, Placed, bits, place, values
from torch import Tensor

from fastcfg import CFG, InDomain, Prediction, Rule, State, guide

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BACKENDS = (None, "torch", "cpp")
SIZES = (1, 2, 3, 5, 7, 16, 17, 31, 64, 97)
LARGE = (4095, 4096, 4097, 16_384, 33_001)
randoms = st.randoms(use_true_random=False)


def draw_shape(rng: Random, least: int = 1) -> tuple[int, ...]:
    """A batch and one to four dimensions, or one long one."""
    batch = rng.randint(1, 4)
    if rng.random() < 0.2:
        return batch, rng.choice(LARGE)
    sides = [rng.choice(SIZES) for _ in range(rng.randint(least, 4))]
    while batch * int(np.prod(sides)) > 60_000:
        sides[sides.index(max(sides))] //= 3
    return (batch, *sides)


@given(st.sampled_from([c for c in (*CASES, *FIELD)]), st.sampled_from(DTYPES), st.integers(0, 2**20), randoms)
@examples(25)
def test_values(case: Case, dtype: torch.dtype, seed: int, rng: Random) -> None:
    """Within the derived bound of the oracle, on every backend."""
    shape = draw_shape(rng, 3 if grouped(case) else 1)
    if grouped(case) and len(shape) < 3:
        shape = (2, 5, 40)
    note(f"{case} {shape} {dtype} {seed}")
    for path in ("torch", "auto"):
        check(case, path, shape, dtype, seed)


@dataclass
class Call:
    """A call's tensors, and how to make it.

    Attributes:
        placed: the predictions; options: everything else but ``out`` and the state; state: what it starts with.
    """

    rule: Rule
    placed: dict[str, Placed]
    state: dict[str, Tensor]
    options: dict[str, Any]

    def run(self, rows: slice = slice(None), change: Callable[[Tensor], Tensor] = lambda t: t, **more: Any) -> Tensor:
        """The call on some samples, each tensor of theirs changed in its layout."""
        batch = next(iter(self.placed.values())).tensor.shape[0]

        def part(value: Any) -> Any:
            per_sample = isinstance(value, Tensor) and value.dim() and value.shape[0] == batch
            return change(value[rows]) if per_sample else value

        options = {n: {k: part(v) for k, v in o.items()} if n == "params" else part(o) for n, o in self.options.items()}
        self.after = State({n: part(t).clone() for n, t in self.state.items()})
        named = {n: change(p.tensor[rows]) for n, p in self.placed.items()}
        return guide(self.rule, state=self.after, **options, **more, **named)


def draw_call(rng: Random, backends: Any = BACKENDS) -> Call:
    """Any rule, layouts, values, parameters, map and mask."""
    rule, dtype = draw_rule(rng), rng.choice(DTYPES)
    shape = (rng.randint(1, 2), 3, 8 * rng.randint(2, 4), 8 * rng.randint(2, 4)) if rule.prepares else draw_shape(rng)
    if rule.lowered.dims is not None and len(shape) < 3:
        shape = (*shape[:1], 4, 35)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    noise = np.random.default_rng(rng.randrange(2**31))
    common = noise.normal(size=shape) + noise.normal()
    placed = {}
    for name in rule.conditions:
        content = values(noise, rng.choice(VALUES), shape, common).clamp(-6e4, 6e4).to(dtype)
        placed[name] = place(content, rng.choice(LAYOUTS), rng)
    lowered, options = rule.lowered, {}
    options["backend"] = None if rule.prepares else rng.choice(backends)
    if isinstance(rule, InDomain):
        options["x"] = torch.from_numpy(noise.normal(size=shape)).to(acc)
        options["prediction"] = Prediction(rng.choice(KINDS), 0.75, 0.5)
    elif not rule.prepares and not (lowered.extras or lowered.updates) and rng.random() < 0.2:
        small = rng.choice((shape, (shape[0], *[1] * (len(shape) - 1)), (1, *shape[1:])))
        options["scale_map"] = torch.from_numpy(noise.uniform(0, 2, size=small)).to(acc)
    if not rule.prepares and lowered.dims is None and rng.random() < 0.2:
        options["mask"] = torch.from_numpy(noise.random(shape) < 0.7)
    if "scale" in lowered.params and not rule.prepares and rng.random() < 0.5:
        drawn = torch.from_numpy(noise.uniform(-2, 12, size=shape[0])).to(acc)
        options["params"] = {"scale": rng.choice((float(drawn[0]), drawn[0], drawn))}
    state = {n: torch.from_numpy(0.5 * noise.normal(size=shape)).to(acc) for n in lowered.extras}
    return Call(rule, placed, state, options)


def draw_out(rng: Random, call: Call) -> Placed | None:
    """A tensor of its own, in any layout; an input; or None."""
    name, kind = call.rule.conditions[-1], rng.choice(("none", "new", "input"))
    first = call.placed[name]
    if kind == "input" and first.writable:
        return first
    layout = rng.choice([layout for layout in LAYOUTS if layout not in ("expanded", "negated")])
    return None if kind == "none" else place(torch.zeros_like(first.tensor.contiguous()), layout, rng)


def check_call(call: Call, out: Placed | None, alone: int) -> None:
    """Nothing is written but the result; bits depend on neither copies, ``out``, layout nor batch mates."""
    expected = call.run(change=lambda t: t.clone(memory_format=torch.preserve_format))
    memory = call.after
    # Where sums run in memory's order, another layout may add in another one.
    strides = {p.tensor.stride()[1:] for p in call.placed.values()}
    dense = all(p.tensor.is_contiguous() for p in call.placed.values())
    ordered = call.rule.program.reduces and not dense and (len(strides) == 1 or call.rule.lowered.dims is not None)
    result = call.run(out=None if out is None else out.tensor)
    assert out is None or (result is out.tensor and not out.strayed()), "memory outside of out was written"
    first = next(iter(call.placed.values())).tensor
    assert result.shape == first.shape and result.dtype == first.dtype, result.dtype
    for name, placed in call.placed.items():
        assert out is placed or not placed.changed(), f"{name}: an input was written"
    if out is None or not ordered:
        same(call, result, expected, "a copy of the inputs")
        for name in memory:
            same(call, call.after[name], memory[name], f"the state's {name}")
    if any(out is placed for placed in call.placed.values()):
        return  # What it was made from is gone.
    if result.numel():
        same(call, result[alone : alone + 1], call.run(slice(alone, alone + 1)), f"sample {alone} alone")
    if not call.rule.prepares and not ordered:
        copies = call.run(change=lambda t: t.resolve_neg().clone(memory_format=torch.contiguous_format))
        same(call, result, copies, "contiguous copies")


def same(call: Call, one: Tensor, other: Tensor, what: str) -> None:
    if call.rule.program.is_lerp:
        # At weight 1 torch.lerp gives -0.0 or 0.0 for -0.0: the loop decides, and so the place in memory.
        one, other = one + 0.0, other + 0.0
    assert torch.equal(one.isnan(), other.isnan()), f"not the bits of {what}"
    pair = [bits(torch.where(t.isnan(), 0.0, t)) for t in (one, other)]
    assert torch.equal(*pair), f"not the bits of {what}"


@given(randoms)
@examples(12)
def test_any_call(rng: Random) -> None:
    call = draw_call(rng)
    strides = [(p.tensor.dtype, p.tensor.shape, p.tensor.stride()) for p in call.placed.values()]
    note(f"{call.rule!r} {strides} {sorted(call.options)} {call.options['backend']}")
    check_call(call, draw_out(rng, call), rng.randrange(max(1, next(iter(call.placed.values())).tensor.shape[0])))


def defect(change: Callable[[Tensor, dict[str, Any]], Any], whole: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def broken(rule: Any, **given: Any) -> Tensor:
        result = whole(rule, **given)
        made = change(result, given)
        return result if made is None else made

    return broken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result, given: given["uncond"].view(-1)[0].add_(1) and None, "uncond: an input was written"),
        (lambda result, given: result.add_(result.mean() * 2**-20), "not the bits of sample 1 alone"),
        (lambda result, given: result.double(), "float64"),
    ],
    ids=["input", "batch", "dtype"],
)
def test_a_defect_is_found(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    placed = {n: place(t, "contiguous", Random(0)) for n, t in zip(("uncond", "cond"), contents, strict=True)}
    call = Call(CFG(3.0, rescale=0.5), placed, {}, {"backend": "torch"})
    check_call(call, None, 1)
    monkeypatch.setitem(globals(), "guide", defect(change, guide))
    with pytest.raises(AssertionError, match=message):
        check_call(call, None, 1)
