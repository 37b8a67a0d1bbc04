"""Hand every kernel's arguments to Triton's own binder, as a first launch on a GPU does; print the types it finds.

A process of its own: Triton chooses between its interpreter and its compiler when it is imported, and the binder is the
compiler's.
"""

import json

import torch
import triton
from fastcfg_kernels.backends.triton import gates
from fastcfg_kernels.backends.triton.launch import Signature, prepare
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

PROGRAMS = gates.programs()


def bound(strategy: str, name: str) -> dict[str, list[str]]:
    """Return the type that the binder finds for each argument, by the name of the kernel."""
    program = PROGRAMS[name]
    count = 4096 if strategy == "row" else 65536
    cooperative = 132 if strategy == "cooperative" else 0
    reads = tuple(
        torch.empty(2, count) for _ in range(program.width + program.affine + program.scaled + program.masked)
    )
    tail = tuple(torch.empty(2, count) for _ in range(len(program.predictions) + len(program.extras) - len(reads)))
    outs = tuple(torch.empty(2, count) for _ in range(program.results))
    every = (*reads, *tail, *outs)
    signature = Signature(
        torch.Size((2, count)),
        tuple(t.stride() for t in every),
        tuple(t.dtype for t in every),
        len(reads),
        len(tail),
        (-1,) * len(program.params),
        (None,) * len(program.params),
        tuple(range(program.results)),
        None,
        strategy,
        cooperative,
        torch.device("cuda"),
    )
    given = {
        "predictions": reads,
        "outs": outs,
        "tail": tail,
        "parameters": (1.5,) * len(program.params),
        "stats": torch.empty(2, 1),
        "workspace": torch.empty(64),
        "arrivals": torch.zeros(2, dtype=torch.int32),
    }
    backend = make_backend(GPUTarget("cuda", 90, 32))
    found = {}
    for launch in prepare(program, signature).launches:
        kernel = launch._kernel
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        arguments = {n: launch._fixed[n] if n in launch._fixed else given[n] for n in kernel.arg_names}
        _, specialization, _ = bind(**arguments)
        found[kernel.__name__] = [str(kind) for kind, *_ in specialization]
    return found


if __name__ == "__main__":
    results = {
        f"{strategy} {name}": bound(strategy, name)
        for strategy in ("row", "two_launch", "cooperative")
        for name in PROGRAMS
        if strategy == "two_launch" or PROGRAMS[name].reduces
    }
    print(json.dumps({"triton": triton.__version__, "bound": results}))
