"""``import fastcfg`` needs none of the frameworks, and an adapter names the one it misses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
BLOCKED = (
    "diffusers",
    "transformers",
    "comfy",
    "comfy_api",
    "k_diffusion",
    "vllm",
    "vllm_omni",
    "typer",
    "rich",
    "accelerate",
)

PRELUDE = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]\n"
    return subprocess.run([sys.executable, "-c", path + PRELUDE + code], capture_output=True, text=True, check=False)


def test_import_and_guide_without_any() -> None:
    done = python(
        "import torch, fastcfg\n"
        "from fastcfg.adapters import comfyui, k_diffusion, vllm_omni\n"
        "u, c = torch.zeros(1, 4), torch.ones(1, 4)\n"
        "assert float(fastcfg.guide(fastcfg.CFG(2.0), uncond=u, cond=c).sum()) == 8.0\n"
        "model = lambda x, sigma, cond: x * 0 + cond.view(-1, 1)\n"
        "y = k_diffusion.CFGDenoiser(model, fastcfg.CFG(2.0))(u, torch.ones(1), uncond=u[:, 0], cond=c[:, 0])\n"
        "assert float(y.sum()) == 8.0\n"
        "assert len(comfyui.NODE_CLASS_MAPPINGS) > 15\n"
        f"assert not {set(BLOCKED)} & {{name.split('.')[0] for name in sys.modules}}\n"
    )
    assert done.returncode == 0, done.stderr


MISSING = {
    "import fastcfg.adapters.diffusers": "needs diffusers .*fastcfg-diffusion\\[diffusers\\]",
    "import fastcfg.adapters.transformers": "fastcfg.adapters.transformers needs transformers .*pip install",
    "from fastcfg.adapters.vllm_omni import fuse; fuse(int)": "needs vllm-omni .*pip install vllm-omni",
    "from fastcfg.adapters.comfyui.hooks import comfy; comfy('samplers')": "needs ComfyUI .*fastcfg comfyui install",
    "import asyncio, fastcfg.adapters.comfyui as pack; asyncio.run(pack.comfy_entrypoint())": "comfy_api.latest",
    "import fastcfg.cli.app": "typer.*fastcfg-diffusion\\[cli\\]",
}


def test_the_missing_package_is_named() -> None:
    done = python(
        f"for code in {list(MISSING)}:\n"
        "    try:\n"
        "        exec(code)\n"
        "        print('nothing was missing')\n"
        "    except (ImportError, SystemExit) as error:\n"
        "        print(str(error).replace('\\n', ' '))\n"
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(MISSING)
    for code, line in zip(MISSING, said, strict=True):
        assert re.search(MISSING[code], line), (code, line)
