"""Messages of ranks before they exchange tensors, so that a fault is an error on all of them and no hang."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Control", "ParallelError", "all_gather", "group_of"]

MESSAGE = 4096
"""Bytes of a message; a longer text is cut."""


all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""``all_gather(into, given, group=)`` of one tensor of each rank, by the name that this torch has for it."""


class ParallelError(RuntimeError):
    """A rank failed, is gone, or does something else than the others. Raised on every rank that is left."""


def group_of(group: dist.ProcessGroup | DeviceMesh | None) -> dist.ProcessGroup:
    """The process group of a one-dimensional mesh, of a group, or of all ranks (None).

    Raises:
        RuntimeError: if ``torch.distributed`` is not initialised.
        ValueError: if a mesh has more dimensions than one.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("group: torch.distributed is not initialised; start with torchrun and init_process_group")
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group: expected one dimension of a mesh, mesh['cfg'] say, got {group.ndim} dimensions")
        return group.get_group()
    if group is None:
        whole = dist.group.WORLD
        assert whole is not None
        return whole
    return group


class Control:
    """A channel of short messages between the ranks of a group: a Gloo group of its own, with a time limit.

    Args:
        group: whose ranks; every one of them has to make its Control, in the same order as the others.
        timeout: seconds to wait for a rank.

    Raises:
        ValueError: if ``timeout`` is not positive.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout: expected seconds above 0, got {timeout}")
        self.timeout = timeout
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._group = dist.new_group(
            dist.get_process_group_ranks(group),
            timeout=timedelta(seconds=timeout),
            backend="gloo",
            use_local_synchronization=True,
        )
        self._messages = torch.zeros(self.size, MESSAGE, dtype=torch.uint8)

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every rank's message, in the order of ranks.

        Raises:
            ParallelError: if a rank does not answer in time, or is gone.
        """
        text = json.dumps(message).encode()
        if len(text) > MESSAGE:
            raise ValueError(f"message: expected at most {MESSAGE} bytes, got {len(text)}")
        own = torch.zeros(MESSAGE, dtype=torch.uint8)
        own[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.guarded(lambda: all_gather(self._messages.view(-1), own, group=self._group))
        return [json.loads(bytes(row).rstrip(b"\0")) for row in self._messages.numpy()]

    def guarded(self, communicate: Callable[[], Any]) -> None:
        """Run a collective of the group; what goes wrong in it is a :class:`ParallelError`."""
        start = time.monotonic()
        try:
            communicate()
        except RuntimeError as error:
            waited = time.monotonic() - start
            what = "did not answer in time" if waited >= 0.9 * self.timeout else "is gone"
            raise ParallelError(
                f"a rank of the group {what} (rank {self.rank} of {self.size} waited {waited:.1f} s, "
                f"the limit is {self.timeout:g} s): {_first_line(error)}"
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def describe(error: BaseException) -> str:
    """An exception as a line of a message."""
    return f"{type(error).__name__}: {_first_line(error)}"
