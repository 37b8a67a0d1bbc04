"""Results of Triton's interpreter, for a process that has the compiler.

python -m gpu.emulated.interpreted PROGRAM FILE
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from fastcfg_kernels import guide_outputs
from fastcfg_kernels.backends.triton.gates import PARAMS, programs

__all__ = ["results"]

COUNT = 5_001


def results(name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Results of a program in float32 and float16, each with a name."""
    program = programs()[name]
    for dtype in (torch.float32, torch.float16):
        generator = torch.Generator().manual_seed(7)
        size = len(program.predictions)
        tensors = [torch.randn(2, COUNT, generator=generator) for _ in range(size + len(program.extras))]
        found = guide_outputs(
            [t.to(dtype) for t in tensors[:size]], program, {n: PARAMS.get(n, 0.5) for n in program.params},
            extras=tensors[size:], backend="triton", strategy="two_launch",
        )  # fmt: skip
        for k, result in enumerate(found):
            yield f"{str(dtype)[6:]} {k}", result


if __name__ == "__main__":
    np.savez(sys.argv[2], **{kind: result.numpy() for kind, result in results(sys.argv[1])})
