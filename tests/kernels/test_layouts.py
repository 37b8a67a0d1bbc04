"""Memory layouts: every one gives what contiguous copies give, and nothing but ``out`` is written."""

from collections.abc import Callable

import pytest
import torch

import fastcfg
from fastcfg import CFG, Clamp, DualCFG, PerpNeg, Rule

RULES = {
    "lerp": CFG(4.0),
    "rescale": CFG(4.0, rescale=0.7),
    "three": DualCFG(4.0, 1.0),
    "perp": PerpNeg(4.0, (1.0,)),
    "clamp": Clamp(CFG(4.0), k=1.0),
}
SHAPES = [(3, 7), (2, 5, 6), (2, 4, 9, 8), (2, 3, 2, 5, 6)]
# A small path, the torch path beyond it, and the interpreter.
by_backend = pytest.mark.parametrize("backend", [None, "auto", "torch", "triton"], ids=str)
by_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def draw(rule: Rule, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    return {name: torch.randn(shape, generator=generator).to(dtype) for name in rule.conditions}


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Another order of the elements is another order of the sums: a few roundings of numbers of size 10.
    torch.testing.assert_close(actual, expected, rtol=0, atol=64 * 2.0**-24 * 10)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    )


def inside(x: torch.Tensor) -> torch.Tensor:
    """A slice of a wider tensor in dim 1, as of channels or tokens; its neighbours are NaN."""
    wide = torch.full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), float("nan"))
    wide[:, 1 : 1 + x.shape[1]] = x
    return wide[:, 1 : 1 + x.shape[1]]


def last_slice(x: torch.Tensor) -> torch.Tensor:
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), float("nan"))
    wide[..., 2:-1] = x
    return wide[..., 2:-1]


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, -1).contiguous().transpose(1, -1)


def negated(x: torch.Tensor) -> torch.Tensor:
    """A view that torch negates as it reads: in memory stands the opposite."""
    return torch.view_as_complex(torch.stack([torch.full_like(x, float("nan")), -x], -1)).conj().imag


def batch_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    f.__name__: f for f in (channels_last, inside, last_slice, transposed, batch_last, negated)
}


@by_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@by_rule
def test_dimensions_agree(rule: Rule, shape: tuple[int, ...], backend: str | None) -> None:
    tensors = draw(rule, shape)
    flat = fastcfg.guide(rule, backend=backend, **{n: t.flatten(1) for n, t in tensors.items()})
    actual = fastcfg.guide(rule, backend=backend, **tensors)
    assert actual.shape == shape
    assert torch.equal(actual.flatten(1), flat)


@by_backend
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@by_rule
def test_layouts_agree_with_contiguous(rule: Rule, layout: Callable, backend: str | None) -> None:
    for shape in (*SHAPES[1:], (2, 3, 91, 90)):
        if backend == "triton" and shape[-1] == 90:
            continue
        tensors = draw(rule, shape)
        expected = fastcfg.guide(rule, backend=backend, **tensors)
        close(fastcfg.guide(rule, backend=backend, **{n: layout(t) for n, t in tensors.items()}), expected)
        mixed = {n: layout(t) if i else t for i, (n, t) in enumerate(tensors.items())}
        close(fastcfg.guide(rule, backend=backend, **mixed), expected)
        out = layout(torch.full(shape, float("nan")))
        got = fastcfg.guide(rule, backend=backend, out=out, **mixed)
        assert got is out
        close(out, expected)


@by_backend
@by_rule
def test_a_slice_has_the_bits_of_its_copy_and_leaves_its_neighbours(rule: Rule, backend: str | None) -> None:
    tensors = draw(rule, (2, 4, 9, 8))
    expected = fastcfg.guide(rule, backend=backend, **tensors)
    assert torch.equal(fastcfg.guide(rule, backend=backend, **{n: inside(t) for n, t in tensors.items()}), expected)
    out = torch.full((2, 9, 9, 8), -1.0)
    fastcfg.guide(rule, backend=backend, out=out[:, 3:7], **tensors)
    assert torch.equal(out[:, 3:7], expected)
    assert (out[:, :3] == -1).all() and (out[:, 7:] == -1).all()


@by_backend
@by_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_out_may_be_any_input(rule: Rule, backend: str | None, dtype: torch.dtype) -> None:
    for shape in ((2, 4, 9, 8), (2, 3, 91, 90)):
        if backend == "triton" and shape[-1] == 90:
            continue
        tensors = draw(rule, shape, dtype)
        expected = fastcfg.guide(rule, backend=backend, **tensors)
        fresh = torch.full(shape, float("nan"), dtype=dtype)
        assert fastcfg.guide(rule, backend=backend, out=fresh, **tensors) is fresh
        assert torch.equal(fresh, expected)
        for name in tensors:
            copies = {n: t.clone() for n, t in tensors.items()}
            assert fastcfg.guide(rule, backend=backend, out=copies[name], **copies) is copies[name]
            assert torch.equal(copies[name], expected), name
            assert all(torch.equal(copies[n], tensors[n]) for n in tensors if n != name), "another input was written"
        stacked = torch.cat(list(tensors.values()))
        half = stacked[shape[0] : 2 * shape[0]]
        fastcfg.guide(rule, stacked, backend=backend, out=half)
        assert torch.equal(half, expected)


@by_backend
@by_rule
def test_out_may_overlap_an_input(rule: Rule, backend: str | None) -> None:
    """In one storage, or in memory that NumPy lent to two."""
    tensors = draw(rule, (2, 3000))
    expected = fastcfg.guide(rule, backend=backend, **tensors)
    for name in tensors:
        for read, written in ((slice(4, None), slice(-4)), (slice(-4), slice(4, None))):
            lent = torch.empty(6004).numpy()
            one = torch.empty(6004)
            for source, out in (
                (torch.from_numpy(lent[read]), torch.from_numpy(lent[written])),
                (one[read], one[written]),
            ):
                given = {**tensors, name: source.view(2, 3000).copy_(tensors[name])}
                fastcfg.guide(rule, backend=backend, out=out.view(2, 3000), **given)
                assert torch.equal(out.view(2, 3000), expected), name


@by_backend
@by_rule
def test_one_batch_tensor_in_any_order(rule: Rule, backend: str | None) -> None:
    tensors = draw(rule, (2, 4, 9, 8))
    expected = fastcfg.guide(rule, backend=backend, **tensors)
    batch = torch.cat([tensors[n] for n in rule.conditions])
    assert torch.equal(fastcfg.guide(rule, batch, backend=backend), expected)
    order = tuple(reversed(rule.conditions))
    batch = torch.cat([tensors[n] for n in order])
    assert torch.equal(fastcfg.guide(rule, batch, order=order, backend=backend), expected)
    parts = fastcfg.split_batch(rule, batch, order)
    assert list(parts) == list(order)
    assert all(p.untyped_storage().data_ptr() == batch.untyped_storage().data_ptr() for p in parts.values())


@by_backend
@by_rule
def test_expanded_predictions(rule: Rule, backend: str | None) -> None:
    tensors = draw(rule, (3, 4, 9, 8))
    first, *others = tensors
    tensors[first] = tensors[first][:1].expand(3, -1, -1, -1)
    tensors[others[0]] = tensors[others[0]][..., :1].expand(-1, -1, -1, 8)
    expected = fastcfg.guide(rule, backend=backend, **{n: t.contiguous() for n, t in tensors.items()})
    close(fastcfg.guide(rule, backend=backend, **tensors), expected)


@by_backend
@by_rule
def test_nothing_in_nothing_out(rule: Rule, backend: str | None) -> None:
    for shape in ((0, 4, 8), (2, 0, 8)):
        tensors = draw(rule, shape)
        assert fastcfg.guide(rule, backend=backend, **tensors).shape == shape
        out = torch.empty(shape)
        assert fastcfg.guide(rule, backend=backend, out=out, **tensors) is out
    assert fastcfg.guide(rule, torch.empty(0, 4, 8), backend=backend).shape == (0, 4, 8)


@by_backend
def test_one_prediction(backend: str | None) -> None:
    x = torch.randn(2, 4, 9, 8)
    rule = fastcfg.Linear((("cond", 0.5),))
    assert torch.equal(fastcfg.guide(rule, cond=x, backend=backend), 0.5 * x)
    same = fastcfg.Linear((("cond", 1.0),))
    got = fastcfg.guide(same, cond=x, backend=backend)
    assert torch.equal(got, x) and got.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("layout", [inside, last_slice], ids=lambda f: f.__name__)
@by_rule
def test_slices_are_batch_invariant(rule: Rule, layout: Callable) -> None:
    tensors = {n: layout(t) for n, t in draw(rule, (8, 3, 5, 7)).items()}
    whole = fastcfg.guide(rule, **tensors)
    for b in range(8):
        alone = fastcfg.guide(rule, **{n: t[b : b + 1] for n, t in tensors.items()})
        assert torch.equal(alone, whole[b : b + 1]), b
