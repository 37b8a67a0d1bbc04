"""Time on the GPU without the host's part: many calls captured in one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .peers import Call
from .race import Reading

__all__ = ["GraphTimer", "capture"]


def capture(calls: Sequence[Call], iterations: int, cuda: Any = torch.cuda) -> Call:
    """Capture calls in turn; the result replays all and returns the last one's tensor.

    Args:
        calls: one on each copy of the predictions; they have run before.
        iterations: calls captured, at least one on each copy: a graph that leaves some out would find the others in
            the cache.
        cuda: ``torch.cuda``, or what stands for it in a test.

    Raises:
        ValueError: for fewer iterations than copies.
        RuntimeError: if a call can't be captured.
    """
    if iterations < len(calls):
        raise ValueError(f"iterations: expected at least one for each of {len(calls)} copies, got {iterations}")
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        calls[0]()
    cuda.current_stream().wait_stream(stream)
    graph = cuda.CUDAGraph()
    results: list[Tensor | None] = [None] * len(calls)  # Kept until their copy's next turn, they rotate too.
    with cuda.graph(graph):
        for k in range(iterations):
            results[k % len(calls)] = calls[k % len(calls)]()
    last = results[(iterations - 1) % len(calls)]
    assert last is not None

    def replay() -> Tensor:
        graph.replay()
        return last

    return replay


class GraphTimer:
    """Time on the GPU of one of the calls in a graph, as ``graph``.

    Args:
        iterations: calls captured; cuda: ``torch.cuda``, or what stands for it in a test.
    """

    BUSY_CYCLES = 200_000  # Longer than the launch of a graph takes.

    def __init__(self, iterations: int, cuda: Any = torch.cuda) -> None:
        self.iterations, self.cuda = iterations, cuda

    def measure(self, call: Call) -> Reading:
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        self.cuda._sleep(self.BUSY_CYCLES)
        start.record()
        call()
        end.record()

        def read() -> dict[str, float]:
            end.synchronize()
            return {"graph": float(start.elapsed_time(end)) / self.iterations}

        return read
