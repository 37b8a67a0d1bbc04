"""``fastcfg bench``: the repository's benchmarks, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["command"]

REPOSITORY = Path(__file__).resolve().parents[2]
# What the benchmarks set for OpenMP is read when torch is imported, which the command line has done already.
_RUN = "import sys; sys.path[0] = sys.argv.pop(1); from benchmarks.run import app; app(prog_name='fastcfg bench')"


def command(arguments: Sequence[str], repository: Path = REPOSITORY) -> int:
    """Run ``benchmarks.run`` of the repository that this package is in.

    Args:
        arguments: of its command line.

    Returns:
        The exit status.

    Raises:
        FileNotFoundError: for an installed package, which comes without the benchmarks.
    """
    if not (repository / "benchmarks" / "run.py").is_file():
        raise FileNotFoundError(
            "the benchmarks are not part of the installed package: run this in a clone of the repository, "
            "after pip install --editable '.[bench]'"
        )
    return subprocess.run([sys.executable, "-c", _RUN, str(repository), *arguments]).returncode
