"""The oldest Triton that the package claims, for tests that run beside the installed one."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

OLDEST = "3.6.0"


def oldest_triton() -> Path:
    """Return a folder that holds the oldest Triton, put there once for all runs on a machine."""
    folder = Path(tempfile.gettempdir()) / f"fastcfg-triton-{OLDEST}-py{sys.version_info[0]}{sys.version_info[1]}"
    if not (folder / "complete").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        done = subprocess.run([*command, f"triton=={OLDEST}"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"Triton {OLDEST} could not be fetched: {done.stderr.strip()[-300:]}")
        (folder / "complete").touch()
    return folder
