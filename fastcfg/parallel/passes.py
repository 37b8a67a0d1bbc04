"""The passes of a step on different ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..denoiser.passes import Batched, Executor, Pass
from ..rules import Rule
from .control import Control, ParallelError, all_gather, describe, group_of

__all__ = ["PassParallel", "share"]


def share(count: int, ranks: int, rank: int) -> range:
    """The passes of a rank: consecutive ones, as evenly as they divide; the first ranks have one more.

    Args:
        count: passes; ranks: of the group. Ranks beyond the passes have none.
    """
    size, more = divmod(count, ranks)
    start = rank * size + min(rank, more)
    return range(start, start + size + (rank < more))


def layout(tensor: Tensor) -> list[int]:
    """A tensor's dimensions in the order in which they lie in memory, the outermost first."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim))


class PassParallel:
    """An executor that splits the passes of a step over the ranks of a group (CFG parallelism).

    ``GuidedDenoiser(model, rule, mode=PassParallel())``: every rank has the model, is given the same input and
    conditions, runs its share of the passes, and receives the predictions of the others, once and unrounded. Each then
    computes the guidance itself, from the same numbers by the same code: the result has the same bits on all ranks,
    and those of a serial run whose passes are split in the same way. A step with one pass is run by every rank, and
    nothing is sent.

    Before tensors are sent, ranks compare what they do. A model that fails on a rank, a rank that is gone, shapes,
    dtypes, passes, timesteps or rules that differ: each ends in a :class:`ParallelError` on all ranks that are left, at
    the latest after ``timeout`` seconds.

    Args:
        group: a process group, one dimension of a ``DeviceMesh`` (``mesh["cfg"]``; data parallelism is the other), or
            None for all ranks. Every rank of it has to make its PassParallel.
        timeout: seconds to wait for the slowest rank's passes.
        inner: how a rank runs its own passes when it has several; default one batch.

    Raises:
        RuntimeError: if ``torch.distributed`` is not initialised.

    No gradient flows through the exchange.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        *,
        timeout: float = 60.0,
        inner: Executor | None = None,
    ) -> None:
        self.group = group_of(group)
        self.control = Control(self.group, timeout)
        self.inner = Batched() if inner is None else inner
        self._rule = ""
        self._received: Tensor | None = None

    def bind(self, rule: Rule) -> None:
        """Note the rule that the predictions are for; ranks compare it."""
        self._rule = hashlib.sha256(rule.to_json().encode()).hexdigest()[:16]

    def reset(self) -> None:
        """Let go of the buffers."""
        self._received = None
        reset = getattr(self.inner, "reset", None)
        if reset is not None:
            reset()

    def run(self, x: Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, Tensor]:
        """See :class:`fastcfg.denoiser.Executor`.

        Raises:
            ParallelError: see the class.
        """
        if len(passes) == 1 or self.control.size == 1:
            return self.inner.run(x, t, passes)
        own = share(len(passes), self.control.size, self.control.rank)
        found: dict[str, Tensor] = {}
        failure: Exception | None = None
        if own:
            try:
                with torch.no_grad():
                    found = self.inner.run(x, t, [passes[i] for i in own])
            except Exception as error:
                failure = error
        made = [found[passes[i].name] for i in own] if failure is None else []
        like = self._agree(x, t, passes, made, failure)
        return self._gather(passes, made, like, x.device)

    def _agree(
        self, x: Tensor, t: Any, passes: Sequence[Pass], found: Sequence[Tensor], failure: Exception | None
    ) -> tuple[list[int], torch.dtype, list[list[list[int]]]]:
        """Compare this step with the other ranks'; its predictions' shape, dtype and, by rank, layouts."""
        doing = {
            "passes": [one.name for one in passes],
            "x": [list(x.shape), str(x.dtype)],
            "t": list(t.shape) if isinstance(t, Tensor) else t,
            "rule": self._rule,
        }
        message: dict[str, Any] = {"doing": doing}
        if failure is not None:
            message["failed"] = describe(failure)
        elif found:
            message["gives"] = [list(found[0].shape), str(found[0].dtype)]
        message["layouts"] = [layout(prediction) for prediction in found]
        answers = self.control.exchange(message)
        failed = [f"rank {r}: {a['failed']}" for r, a in enumerate(answers) if "failed" in a]
        if failed:
            raise ParallelError(f"the model failed on {'; '.join(failed)}") from failure
        for key, value in answers[0]["doing"].items():
            for rank, answer in enumerate(answers):
                if answer["doing"][key] != value:
                    raise ParallelError(
                        f"{key}: the ranks do different things: {value!r} on rank 0, "
                        f"{answer['doing'][key]!r} on rank {rank}"
                    )
        gives = {rank: answer["gives"] for rank, answer in enumerate(answers) if "gives" in answer}
        if len({str(value) for value in gives.values()}) > 1:
            raise ParallelError(f"predictions: the ranks have different shapes or dtypes: {gives}")
        shape, dtype = gives[0]
        return shape, getattr(torch, dtype.removeprefix("torch.")), [answer["layouts"] for answer in answers]

    def _gather(
        self,
        passes: Sequence[Pass],
        own: Sequence[Tensor],
        like: tuple[list[int], torch.dtype, list[list[list[int]]]],
        device: torch.device,
    ) -> dict[str, Tensor]:
        """All predictions by name, views of one buffer, each with its dimensions in memory as they were made.

        A collective takes memory as it lies, and the order of a sum is that of memory: without the layouts numbers
        would change places, or the last bits differ from a serial run's.
        """
        shape, dtype, layouts = like
        ranks = self.control.size
        slots = len(share(len(passes), ranks, 0))
        wanted = (ranks * slots, *shape)
        if self._received is None or self._received.shape != wanted or self._received.dtype != dtype:
            self._received = torch.empty(wanted, dtype=dtype, device=device)
        sent = torch.zeros((slots, *shape), dtype=dtype, device=device)
        for slot, prediction in enumerate(own):
            sent[slot].view(-1).copy_(prediction.permute(layout(prediction)).reshape(-1))
        # As bytes: a backend need not know the dtype.
        into, given = self._received.view(-1).view(torch.uint8), sent.view(-1).view(torch.uint8)
        self.control.guarded(lambda: all_gather(into, given, group=self.group))
        results: dict[str, Tensor] = {}
        for rank in range(ranks):
            for k, number in enumerate(share(len(passes), ranks, rank)):
                order = layouts[rank][k]
                lain = self._received[rank * slots + k].view([shape[dim] for dim in order])
                results[passes[number].name] = lain.permute([order.index(dim) for dim in range(len(order))])
        return results
