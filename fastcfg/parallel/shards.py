"""Sums of samples whose elements lie on different ranks."""

from __future__ import annotations

import fastcfg_kernels as fk
import torch
import torch.distributed as dist
from fastcfg_kernels.backends.torch.tiles import Moments
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from .control import all_gather, group_of

__all__ = ["Shards"]


class Shards:
    """A group of ranks that hold parts of the same samples (sequence or spatial parallelism).

    ``fastcfg.guide(rule, shards=Shards(mesh["sp"]), uncond=u, cond=c)``: each rank gives its own part of every
    prediction, of any size, and receives its part of the result. Sums over a sample are made of the parts' sums: per
    sample a count, a mean for each centred vector and the sums themselves are sent, a few numbers, no tensors. They are
    merged in the order of ranks in float64, in Chan's way, so that the weights have the same bits on every rank.

    Args:
        group: a process group, one dimension of a ``DeviceMesh``, or None for all ranks.

    Raises:
        RuntimeError: if ``torch.distributed`` is not initialised.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.
    """

    def __init__(self, group: dist.ProcessGroup | DeviceMesh | None = None) -> None:
        self.group = group_of(group)
        self.size = dist.get_world_size(self.group)

    def __call__(self, program: fk.Program, part: Moments) -> Moments:
        """The moments of whole samples from those of this rank's part, ``[B]`` each."""
        like = (part.pairs or part.means)[0]
        count = part.count if isinstance(part.count, Tensor) else torch.full_like(like, float(part.count))
        own = torch.stack([t.double() for t in (count, *part.means, *part.pairs)])
        parts = torch.empty((self.size, *own.shape), dtype=own.dtype, device=own.device)
        all_gather(parts.view(-1), own.view(-1).contiguous(), group=self.group)
        centred = list(program.centred)
        total, *values = parts[0].unbind(0)
        means, pairs = values[: len(centred)], values[len(centred) :]
        for other in parts[1:]:
            more, *values = other.unbind(0)
            whole = total + more
            part_of_whole = more / whole.clamp(min=1)  # A mask may leave all out.
            shift = [new - mean for new, mean in zip(values, means, strict=False)]
            pairs = [mine + new for mine, new in zip(pairs, values[len(centred) :], strict=True)]
            for k, (kind, a, b) in enumerate(program.pairs):
                if kind == "cov":
                    pairs[k] = pairs[k] + shift[centred.index(a)] * shift[centred.index(b)] * total * part_of_whole
            means = [mean + s * part_of_whole for mean, s in zip(means, shift, strict=True)]
            total = whole
        dtype = like.dtype
        return Moments(total.to(dtype), [m.to(dtype) for m in means], [p.to(dtype) for p in pairs])
