"""The torch form of the Gram stage: centred sums by tiles, merged in Chan's way.

A sample's ``N`` elements are cut into tiles of :data:`TILE`, whatever the batch, the device or the thread count.
Each tile subtracts its own mean, which it takes relative to its first element, so that a constant has exactly zero
variance and a mean a thousand times the spread costs no digits (a one-pass ``sum(x*x) - sum(x)**2/n`` loses them all).

Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...formula.program import Program

__all__ = ["TILE", "Moments", "accumulator", "basis", "sample_moments", "sample_sums", "spread"]

TILE = 4096


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


def _tile_sums(
    program: Program, tiles: Sequence[Tensor], params: Sequence[Any], acc: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Per tile: means of the centred vectors, and the pairs' sums.

    Args:
        tiles: the program's inputs ``[..., L]``.

    Returns:
        ``(means, sums)``, each a list of ``[...]``; ``cov`` sums are centred at the tile's own means. A tile that the
        mask leaves out has zeros.
    """
    vectors = basis(program, tiles, params, acc)
    others = [p.to(acc) for p in tiles[1 : len(program.predictions)]]
    if program.affine:
        shift, gain = (spread(v, others[0]) for v in params[-2:]) if others else (0, 1)
        others = [shift * tiles[program.width].to(acc) + gain * p for p in others]
    vectors += others
    means, centred = {}, {}
    if program.masked:
        inside = tiles[-1] != 0
        vectors = [torch.where(inside, vector, 0.0) for vector in vectors]
        size = inside.sum(-1, keepdim=True).clamp(min=1)
        leader = inside.to(torch.uint8).argmax(-1, keepdim=True)
    for v in program.centred:
        if program.masked:
            pivot = vectors[v].gather(-1, leader)
            shifted = torch.where(inside, vectors[v] - pivot, 0.0)
            mean = shifted.sum(-1, keepdim=True) / size
            centred[v] = torch.where(inside, shifted - mean, 0.0)
        else:
            pivot = vectors[v][..., :1]
            shifted = vectors[v] - pivot
            mean = shifted.mean(-1, keepdim=True)
            centred[v] = shifted - mean
        means[v] = (mean + pivot)[..., 0]
    sums = []
    for kind, a, b in program.pairs:
        x, y = (centred[a], centred[b]) if kind == "cov" else (vectors[a], vectors[b])
        sums.append((x * y).sum(-1))
    return list(means.values()), sums


def _valid_count(program: Program, inputs: Sequence[Tensor], acc: torch.dtype) -> Any:
    """The number of elements that a row's sums run over: ``[...]`` where a mask leaves some out."""
    if program.masked:
        return (inputs[-1] != 0).sum(-1).to(acc)
    return torch.sym_float(inputs[0].shape[-1])  # type: ignore[no-untyped-call]


def _total(values: Tensor, size: Tensor | int) -> Tensor:
    """The sum over tiles of something times their sizes."""
    return (values * size).sum(-1) if isinstance(size, Tensor) else values.sum(-1) * size


class Moments(NamedTuple):
    """What a program needs of a row, or of a part of one.

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
    number = _valid_count(program, inputs, accumulator(inputs[0].dtype))
    if not program.reduces:
        return Moments(number, [], [])
    acc = accumulator(inputs[0].dtype)
    count: Any = inputs[0].shape[-1]
    # An exported graph serves every size: the number of tiles would fix it. One tile of any length is the same
    # two-pass, centred sum; its error is that of the runtime's own reduction.
    whole = 0 if torch.compiler.is_exporting() else count // TILE
    rest = count - whole * TILE
    if whole == 0:
        return Moments(number, *_tile_sums(program, inputs, params, acc))
    cut = count - rest
    main = [p if rest == 0 else p[..., :cut] for p in inputs]
    means, sums = _tile_sums(program, [p.view(*p.shape[:-1], -1, TILE) for p in main], params, acc)
    tail_means: list[Tensor] = []
    tail_sums: list[Tensor] = []
    if rest:
        tail_means, tail_sums = _tile_sums(program, [p[..., cut:] for p in inputs], params, acc)
    size: Tensor | int = TILE
    if program.masked:  # Every size is the number of elements that are left in.
        inside = inputs[-1] != 0
        size = inside[..., :cut].view(*inside.shape[:-1], -1, TILE).sum(-1).to(acc)
        rest = inside[..., cut:].sum(-1).to(acc) if rest else 0
        count = number.clamp(min=1)

    grand: dict[int, Tensor] = {}
    spread: dict[int, tuple[Tensor, Tensor | None]] = {}
    for i, v in enumerate(program.centred):
        pivot = means[i][..., :1]
        shift = means[i] - pivot
        total = _total(shift, size)
        tail = None
        if tail_means:
            tail = tail_means[i] - pivot[..., 0]
            total = total + tail * rest
        mean = total / count
        grand[v] = pivot[..., 0] + mean
        spread[v] = shift - mean.unsqueeze(-1), None if tail is None else tail - mean

    merged = []
    for i, (kind, a, b) in enumerate(program.pairs):
        value = sums[i].sum(-1)
        if tail_sums:
            value = value + tail_sums[i]
        if kind == "cov":
            (main_a, tail_a), (main_b, tail_b) = spread[a], spread[b]
            value = value + _total(main_a * main_b, size)
            if tail_a is not None and tail_b is not None:
                value = value + tail_a * tail_b * rest
        merged.append(value)
    return Moments(number, [grand[v] for v in program.centred], merged)


def sample_sums(program: Program, inputs: Sequence[Tensor], params: Sequence[Any] = ()) -> list[Tensor]:
    """The sums that ``program.weigh`` takes, of the same arguments as :func:`sample_moments`: ``[...]`` each."""
    return list(sample_moments(program, inputs, params).sums(program))
