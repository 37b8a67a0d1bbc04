#!/usr/bin/env bash
# diffusers: arguments given by place are lost by `from_config`, for schedulers and for guiders.
#
# Versions: diffusers 0.42.1, torch 2.13.0, Python 3.11, Linux.
# Expected: `C.from_config(c.config)` makes an object with the arguments of c, however they were given.
# Seen: the config holds an argument that was given by place, and also lists it among those "left at their default";
#   `from_config` then drops it and takes the default. DDIMScheduler(500) comes back with 1000 training steps, without a word.
#   The same arguments by name survive. `save_pretrained`, `from_pipe` and swapping a scheduler go through `from_config`.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet diffusers==0.42.1 transformers accelerate
cat > "$place/see.py" <<'PYTHON'
import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import diffusers
from diffusers import DDIMScheduler
from diffusers.guiders import AdaptiveProjectedGuidance

by_place, by_name = DDIMScheduler(500), DDIMScheduler(num_train_timesteps=500)
again = [DDIMScheduler.from_config(s.config).config.num_train_timesteps for s in (by_place, by_name)]
guiders = AdaptiveProjectedGuidance(5.0), AdaptiveProjectedGuidance(guidance_scale=5.0)
scales = [AdaptiveProjectedGuidance.from_config(g.config).guidance_scale for g in guiders]
print(f"diffusers {diffusers.__version__}")
print(f"DDIMScheduler, 500 by place and by name, through from_config: {again}; its config said "
      f"{by_place.config.num_train_timesteps}")
print(f"AdaptiveProjectedGuidance, 5.0 by place and by name: {scales}")
raise SystemExit(not (again == [1000, 500] and scales == [7.5, 5.0]))
PYTHON
"$place/venv/bin/python" "$place/see.py"
