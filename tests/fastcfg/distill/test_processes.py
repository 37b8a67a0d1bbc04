"""Several processes: each draws its own examples, and all hold the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from fastcfg import CFG
from fastcfg.distill import DistillConfig, Distiller, distill
from fastcfg.demo.distillation import demo_task

checkpoint, folder = map(Path, sys.argv[1:])
config = DistillConfig(steps=2, batch=4, accumulate=2, trajectories=2, sampler_steps=(2,), window=2, reuse=1, warmup=0)
distiller = Distiller(demo_task(CFG(4.0), checkpoint=checkpoint), config)
rank = distiller.accelerator.process_index
first = distiller._examples(0)[0].double().sum().item()
losses = [distiller.step() for _ in range(2)]
weights = sum(value.double().sum() for value in distiller.trained.values()).item()
distill(demo_task(CFG(4.0), checkpoint=checkpoint), config, folder, progress=False)
found = {"processes": distiller.accelerator.num_processes, "first": first, "losses": losses, "weights": weights}
(folder / f"rank{rank}.json").write_text(json.dumps(found))
"""


def test_two_processes_train_one_student(tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(script), str(tiny_checkpoint), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one["processes"] == other["processes"] == 2
    assert one["first"] != other["first"]
    assert one["losses"] == other["losses"] and one["weights"] == other["weights"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "student.safetensors").exists() and (tmp_path / "state.safetensors").exists()
