#!/usr/bin/env bash
# torch.distributed, gloo: equal tensors of different memory formats are added in a wrong order, without an error.
#
# Versions: torch 2.13.0, Python 3.11, Linux; two processes on one machine.
# Expected: all_reduce and broadcast of tensors of one shape and dtype act on their elements, or refuse what they can't.
# Seen: they act on the bytes as they lie. Where one rank's tensor is channels_last and the other's is contiguous (a
#   convolution's output on one rank, a copy on the other), the sum pairs wrong elements, and a broadcast delivers permuted ones.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet numpy==2.4.6
cat > "$place/see.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def values():
    return torch.arange(24.0).reshape(1, 4, 2, 3)


def worker(rank, place):
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
    mine = values().contiguous(memory_format=torch.channels_last) if rank else values()
    assert torch.equal(mine, values())
    summed, sent = mine.clone(), mine.clone()
    dist.all_reduce(summed)
    dist.broadcast(sent, src=0)
    if rank == 1:
        right = [torch.equal(summed, 2 * values()), torch.equal(sent, values())]
        print(f"torch {torch.__version__}, gloo, contiguous on rank 0 and channels_last on rank 1")
        print(f"the sum is twice the values: {right[0]}; the broadcast is the values: {right[1]}", flush=True)
        open(f"{place}/seen", "w").write(str(right))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(worker, args=(sys.argv[1],), nprocs=2)
    raise SystemExit(open(f"{sys.argv[1]}/seen").read() != "[False, False]")
PYTHON
"$place/venv/bin/python" "$place/see.py" "$place"
