"""The compiled kernels beside Triton's interpreter: equal bits in float32 and float16.

Not in bfloat16, which the interpreter truncates; and a quotient, which the instruction set leaves open, is the nearest
one on both.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu.emulated.devices import whole
from gpu.emulated.interpreted import results


@pytest.mark.parametrize("name", ["rescale", *map(whole, ("cfg", "clamp", "perpendicular", "step", "projected"))])
def test_the_compiled_kernels_give_the_bits_of_the_interpreter(name: str, tmp_path: Path) -> None:
    path, root = tmp_path / "interpreted.npz", Path(__file__).parents[3]
    environment = {key: value for key, value in os.environ.items() if key != "FASTCFG_SOFTWARE_GPU"}
    places = [root / "tests", root, root / "kernels", *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-m", "gpu.emulated.interpreted", name, str(path)]
    subprocess.run(command, env=environment, check=True)
    with np.load(path) as expected:
        found = dict(results(name))
        assert found.keys() == set(expected.files) and len(found) >= 2
        for kind, result in found.items():
            assert np.array_equal(result.numpy(), expected[kind]), kind
