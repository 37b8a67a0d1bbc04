"""The torch form of the Gram stage: centred sums by tiles, merged in Chan's way, in few operations.

A sample's ``N`` elements are cut into tiles of :data:`LENGTH`, whatever the batch, the device or the thread count:
torch splits a sum among threads where it has one result and 32,768 terms, and the bits would follow the batch.
Each tile subtracts its own mean, which it takes relative to its first element, so that a constant has exactly zero
variance and a mean a thousand times the spread costs no digits (a one-pass ``sum(x*x) - sum(x)**2/n`` loses them all).
All vectors of a tile go through an operation together, for at a latent's size an operation's own overhead is its time.

Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...formula.program import Program

__all__ = ["TILE", "Moments", "accumulator", "basis", "sample_moments", "sample_sums", "spread"]

TILE = 4096
"""Elements of a tile of the Triton kernels."""

LENGTH = 16_384
"""Elements of a tile here. torch adds them up in a cascade, whose error grows with the logarithm of their number."""


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums and weights are kept in: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def spread(value: Any, like: Tensor) -> Any:
    """A parameter of rows so that it broadcasts over their elements ``[..., N]`` (or tiles of them)."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return value.view(*value.shape, *[1] * (like.dim() - value.dim()))


def basis(program: Program, inputs: Sequence[Tensor], params: Sequence[Any], acc: torch.dtype) -> list[Tensor]:
    """The difference basis ``[base, delta, …]`` and the extras in ``acc``.

    Args:
        inputs: K predictions, the extras (``x`` leads their tail where the program is affine), and the elementwise
            scale where it is scaled.
        params: whose last two are ``shift`` and ``gain`` in an affine program.
    """
    size = len(program.predictions)
    base = inputs[0].to(acc)
    deltas = [p.to(acc) - base for p in inputs[1:size]]
    extras = [e.to(acc) for e in inputs[size : program.width]]
    if program.scaled:
        scale = inputs[size + len(program.extras)].to(acc)
        deltas = [scale * delta for delta in deltas]
    if program.affine:
        shift, gain = (spread(v, base) for v in params[-2:])
        base = shift * inputs[program.width].to(acc) + gain * base
        deltas = [gain * delta for delta in deltas]
    return [base, *deltas, *extras]


def _vectors(program: Program, tiles: Sequence[Tensor], params: Sequence[Any], acc: torch.dtype) -> list[Tensor]:
    """Every fixed vector ``[..., L]``: the difference basis, the extras, and the predictions but for the base."""
    size = len(program.predictions)
    tiles = [tile.to(acc) for tile in tiles[:size]] + list(tiles[size:])
    others = tiles[1:size]
    if program.affine and others:
        shift, gain = (spread(v, others[0]) for v in params[-2:])
        others = [shift * tiles[program.width].to(acc) + gain * p for p in others]
    return [*basis(program, tiles, params, acc), *others]


def _centre(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means over the last dimension, and what is left without them."""
    pivot = vectors[..., :1]
    shifted = vectors - pivot
    mean = shifted.mean(-1, keepdim=True)
    # Memory of its own, which no gradient asks for again, is written a second time.
    left = shifted - mean if torch.is_grad_enabled() else shifted.sub_(mean)
    return (mean + pivot)[..., 0], left


def _products(pairs: Sequence[tuple[int, int]], vectors: Tensor) -> list[Tensor]:
    """Return the sums of products of vectors ``[..., C, L]`` by number, ``[...]`` each; all squares go together."""
    squares: Sequence[Tensor] = ()
    if any([a == b for a, b in pairs]):
        squares = (vectors * vectors).sum(-1).unbind(-1)
    return [
        squares[a] if a == b else (vectors[..., a, :] * vectors[..., b, :]).sum(-1)  # A square is there.
        for a, b in pairs
    ]


def _numbered(program: Program, kind: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the vectors that a kind of pairs is about, and the pairs in their numbers."""
    pairs = [(a, b) for of, a, b in program.pairs if of == kind]
    used = list(program.centred) if kind == "cov" else sorted({v for pair in pairs for v in pair})
    return used, [(used.index(a), used.index(b)) for a, b in pairs]


def _tile_sums(
    program: Program, tiles: Sequence[Tensor], params: Sequence[Any], acc: torch.dtype
) -> tuple[Tensor | None, list[Tensor]]:
    """Per tile: means of the centred vectors, and the pairs' sums.

    Args:
        tiles: the program's inputs ``[..., L]``.

    Returns:
        Means ``[..., C]`` and a list of ``[...]``; ``cov`` sums are centred at the tile's own means.
    """
    vectors = _vectors(program, tiles, params, acc)
    means, found = None, {}
    for kind in ("cov", "dot"):
        used, pairs = _numbered(program, kind)
        if not used:
            continue
        # [..., C, L]
        together = torch.stack([vectors[v] for v in used], -2) if len(used) > 1 else vectors[used[0]].unsqueeze(-2)
        if kind == "cov":
            means, together = _centre(together)
        found[kind] = iter(_products(pairs, together))
    return means, [next(found[kind]) for kind, _, _ in program.pairs]


def _merge(program: Program, means: Tensor | None, sums: Sequence[Tensor], size: int) -> tuple[Any, list[Tensor]]:
    """Return the moments ``[..., C]`` and ``[...]`` of rows from those of their tiles ``[..., T, C]`` and ``[..., T]``.

    Args:
        size: elements of a tile.
    """
    totals = torch.stack(list(sums), -2).sum(-1) if sums else None
    if means is None:
        return None, [] if totals is None else list(totals.unbind(-1))
    mean, left = _centre(means.transpose(-1, -2))  # [..., C, T]
    if totals is None:
        return mean, []
    _, pairs = _numbered(program, "cov")
    between = iter(_products(pairs, left))
    merged = totals.unbind(-1)
    return mean, [
        torch.add(total, next(between), alpha=size) if kind == "cov" else total
        for total, (kind, _, _) in zip(merged, program.pairs, strict=True)
    ]


def _append(
    program: Program, one: tuple[Any, list[Tensor]], size: int, other: tuple[Any, list[Tensor]], more: int
) -> tuple[Any, list[Tensor]]:
    """Return the moments of rows from those of their first ``size`` elements and of the ``more`` others."""
    (mean, sums), (last, rest) = one, other
    shift = None if mean is None else last - mean
    share = more / (size + more)
    merged = []
    _, pairs = _numbered(program, "cov")
    between = iter(_products(pairs, shift.unsqueeze(-1))) if shift is not None and pairs else iter(())
    for (kind, _, _), value, tail in zip(program.pairs, sums, rest, strict=True):
        total = value + tail
        merged.append(torch.add(total, next(between), alpha=size * share) if kind == "cov" else total)
    return None if shift is None else torch.add(mean, shift, alpha=share), merged


def _valid_count(program: Program, inputs: Sequence[Tensor], acc: torch.dtype) -> Any:
    """The number of elements that a row's sums run over: ``[...]`` where a mask leaves some out."""
    if program.masked:
        return (inputs[-1] != 0).sum(-1).to(acc)
    return torch.sym_float(inputs[0].shape[-1])  # type: ignore[no-untyped-call]


class Moments(NamedTuple):
    """Sums of a row, or of a part of one, that a program needs.

    Attributes:
        count: elements: a number, or ``[...]`` where a mask leaves some out, and perhaps all.
        means: of the program's centred vectors, ``[...]`` each, in the accumulator's dtype.
        pairs: sums of the program's pairs, ``[...]`` each; ``cov`` sums are centred at the means.
    """

    count: Any
    means: list[Tensor]
    pairs: list[Tensor]

    def sums(self, program: Program) -> tuple[Tensor, ...]:
        """The sums in the order that ``program.weigh`` takes."""
        by_vector = dict(zip(program.centred, self.means, strict=True))
        return (*self.pairs, *(by_vector[v] for v in program.means))


def sample_moments(program: Program, inputs: Sequence[Tensor], params: Sequence[Any] = ()) -> Moments:
    """The sums over rows.

    Args:
        inputs: the program's inputs ``[..., N]``: predictions of one floating dtype, extras, scale, mask.
        params: in the order of ``program.params``; only an affine program needs them.
    """
    acc = accumulator(inputs[0].dtype)
    number = _valid_count(program, inputs, acc)
    if not program.reduces:
        return Moments(number, [], [])
    if program.masked:
        return _masked_moments(program, inputs, params, acc, number)
    count = inputs[0].shape[-1]
    # An exported graph serves every size: the number of tiles would fix it. One tile of any length is the same
    # two-pass, centred sum; its error is that of the runtime's own reduction.
    if torch.compiler.is_exporting() or count <= LENGTH:
        means, sums = _tile_sums(program, inputs, params, acc)
    else:
        rest = count % LENGTH
        cut = count - rest
        tiles = [(p if rest == 0 else p[..., :cut]).reshape(*p.shape[:-1], -1, LENGTH) for p in inputs]
        means, sums = _merge(program, *_tile_sums(program, tiles, params, acc), LENGTH)
        if rest:
            last = _tile_sums(program, [p[..., cut:] for p in inputs], params, acc)
            means, sums = _append(program, (means, sums), cut, last, rest)
    return Moments(number, [] if means is None else list(means.unbind(-1)), sums)


def _masked_moments(
    program: Program, inputs: Sequence[Tensor], params: Sequence[Any], acc: torch.dtype, number: Any
) -> Moments:
    """The same where a mask leaves elements out of the sums: every tile has a size of its own, and perhaps none."""
    length = inputs[0].shape[-1]
    if not torch.compiler.is_exporting() and length > TILE:
        # What fills the last tile up is masked out.
        inputs = [functional.pad(p, (0, -length % TILE)).view(*p.shape[:-1], -1, TILE) for p in inputs]
    else:
        inputs = [p.unsqueeze(-2) for p in inputs]
    inside = inputs[-1] != 0  # [..., T, L]
    vectors = [torch.where(inside, v, 0.0) for v in _vectors(program, inputs, params, acc)]
    size = inside.sum(-1).to(acc)
    leader = inside.to(torch.uint8).argmax(-1, keepdim=True)
    means, left = {}, {}
    for v in program.centred:
        pivot = vectors[v].gather(-1, leader)
        shifted = torch.where(inside, vectors[v] - pivot, 0.0)
        mean = shifted.sum(-1, keepdim=True) / size.clamp(min=1).unsqueeze(-1)
        vectors_left = torch.where(inside, shifted - mean, 0.0)
        means[v], left[v] = (mean + pivot)[..., 0], vectors_left
    count = number.clamp(min=1)
    grand, between = {}, {}
    for v, mean in means.items():
        pivot = mean[..., :1]
        shift = mean - pivot
        whole = (shift * size).sum(-1) / count
        grand[v], between[v] = pivot[..., 0] + whole, shift - whole.unsqueeze(-1)
    pairs = []
    for kind, a, b in program.pairs:
        x, y = (left[a], left[b]) if kind == "cov" else (vectors[a], vectors[b])
        value = (x * y).sum(-1).sum(-1)
        pairs.append(value + (between[a] * between[b] * size).sum(-1) if kind == "cov" else value)
    return Moments(number, [grand[v] for v in program.centred], pairs)


def sample_sums(program: Program, inputs: Sequence[Tensor], params: Sequence[Any] = ()) -> list[Tensor]:
    """The sums that ``program.weigh`` takes, of the same arguments as :func:`sample_moments`: ``[...]`` each."""
    return list(sample_moments(program, inputs, params).sums(program))
