"""Tensors of any layout inside buffers whose other elements are watched, and the values that go into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LAYOUTS = ("contiguous", "sliced", "strided", "transposed", "channels", "flipped", "expanded", "offset", "negated")
VALUES = ("normal", "normal", "far", "large", "small", "subnormal", "constant", "zero", "equal", "integers", "sparse")
CANARY = 12345.0
MARGIN = 19


@dataclass(frozen=True)
class Placed:
    """A tensor in a buffer.

    Attributes:
        tensor: what a call is given.
        buffer: 1-D, all of the memory around it.
        inside: which elements of the buffer are the tensor's.
        before: the buffer's bits at the start.
    """

    tensor: Tensor
    buffer: Tensor
    inside: Tensor
    before: Tensor

    @property
    def writable(self) -> bool:
        """Whether each element has a place of its own, and no negation."""
        return not self.tensor.is_neg() and 0 not in self.tensor.stride()

    def strayed(self) -> bool:
        """Whether an element of the buffer outside the tensor changed."""
        return not torch.equal(bits(self.buffer)[~self.inside], self.before[~self.inside])

    def changed(self) -> bool:
        """Whether anything changed."""
        return not torch.equal(bits(self.buffer), self.before)


def bits(tensor: Tensor) -> Tensor:
    """The elements' bits as integers; NaN equals itself there."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.resolve_neg().contiguous().view(kind)


def values(rng: np.random.Generator, kind: str, shape: Sequence[int], common: npt.NDArray[np.float64]) -> Tensor:
    """float64 values of a prediction.

    Args:
        kind: one of :data:`VALUES`; "equal" is what all predictions of a call share.
        common: what the predictions share, as a denoiser's do.
    """
    noise = rng.normal(size=shape)
    made = {
        "normal": lambda: common + 0.5 * noise,
        "far": lambda: common + 0.5 * noise + 300.0,
        "large": lambda: 1e4 * (common + noise),
        "small": lambda: 1e-4 * (common + noise),
        "subnormal": lambda: 1e-41 * noise,
        "constant": lambda: np.full(shape, rng.normal()),
        "zero": lambda: np.zeros(shape),
        "equal": lambda: common,
        "integers": lambda: np.round(4 * noise),
        "sparse": lambda: np.where(rng.random(shape) < 0.05, noise, 0.0),
    }[kind]()
    return torch.from_numpy(np.ascontiguousarray(made))


def place(content: Tensor, layout: str, rng: Random) -> Placed:
    """``content`` in a buffer of its own, laid out so; elements that are not its own hold a canary."""
    shape = list(content.shape)
    # A lane for each way to lie: a larger dense shape, of which the tensor is a view.
    order = list(range(len(shape)))
    outer, steps, start = list(shape), [1] * len(shape), [0] * len(shape)
    if layout == "transposed" and len(shape) > 2:
        order = [0, *rng.sample(order[1:], len(order) - 1)]
    elif layout == "channels" and len(shape) > 2:
        order = [0, *order[2:], 1]
    elif layout == "flipped":
        order = order[::-1]
    elif layout == "sliced":
        dim = rng.randrange(1, len(shape))
        outer[dim] += 3
        start[dim] = rng.randrange(4)
    elif layout in ("strided", "negated"):
        dim = len(shape) - 1 if layout == "negated" else rng.randrange(len(shape))
        outer[dim] *= 2
        steps[dim] = 2
    margin = 0 if layout == "contiguous" else MARGIN
    dense = [outer[d] for d in order]
    size = int(np.prod(dense))
    if layout == "negated":
        return _negated(content)
    if layout == "expanded":
        return _expanded(content, rng)
    buffer = torch.full((size + 2 * margin,), CANARY, dtype=content.dtype)
    whole = buffer[margin : margin + size].view(dense).permute([order.index(d) for d in range(len(order))])
    slices = tuple(slice(at, at + n * step, step) for at, n, step in zip(start, shape, steps, strict=True))
    view = whole[slices]
    view.copy_(content)
    return Placed(view, buffer, _inside(view, buffer), bits(buffer).clone())


def _inside(view: Tensor, buffer: Tensor) -> Tensor:
    inside = torch.zeros(buffer.shape, dtype=torch.bool)
    inside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    return inside


def _expanded(content: Tensor, rng: Random) -> Placed:
    """Its first slice along a dimension, repeated without memory: the content becomes that."""
    dim = rng.randrange(1, content.dim())
    base = content.narrow(dim, 0, min(1, content.shape[dim])).contiguous()
    view = base.expand(content.shape)
    flat = base.reshape(-1)
    return Placed(view, flat, torch.ones(flat.shape, dtype=torch.bool), bits(flat).clone())


def _negated(content: Tensor) -> Placed:
    """A view that torch negates when it is read, as the imaginary part of a conjugate is; half types have none."""
    if content.dtype not in (torch.float32, torch.float64):
        return place(content, "strided", Random(0))
    pair = torch.view_as_complex(torch.stack([torch.full_like(content, CANARY), -content], -1))
    view = pair.conj().imag
    flat = torch.view_as_real(pair).reshape(-1)
    return Placed(view, flat, torch.ones(flat.shape, dtype=torch.bool), bits(flat).clone())
