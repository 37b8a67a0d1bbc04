"""A process of :mod:`benchmarks.parallel`: ``torchrun -m benchmarks.parallel_worker FOLDER ROUNDS BATCH``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from .parallel import rank_times

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    times = rank_times(int(sys.argv[2]), int(sys.argv[3]))
    if dist.get_rank() == 0:
        (Path(sys.argv[1]) / "times.json").write_text(json.dumps(times))
    dist.destroy_process_group()
