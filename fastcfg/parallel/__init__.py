"""Guidance over several devices on ``torch.distributed``.

:class:`PassParallel` runs the passes of a step on different ranks; :class:`Shards` makes the sums of samples whose
elements lie on different ranks. Both give every rank the same bits. They combine with data parallelism through the
dimensions of a ``DeviceMesh``.
"""

from .control import Control, ParallelError
from .passes import PassParallel, share
from .shards import Shards

__all__ = ["Control", "ParallelError", "PassParallel", "Shards", "share"]
