"""The machine and the versions of a measurement."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Environment"]


@dataclass(frozen=True)
class Environment:
    """The machine and the versions of a measurement."""

    device: str
    hardware: str
    threads: int
    commit: str
    versions: Mapping[str, str]

    @staticmethod
    def of(device: str, *packages: str) -> Environment:
        """This process's.

        Args:
            packages: whose versions count too, where they are installed.
        """
        usual = ("fastcfg", "torch", "numpy", "diffusers", *(("triton",) if device == "cuda" else ()))
        versions = {"python": platform.python_version()}
        for package in (*usual, *packages):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        hardware = torch.cuda.get_device_name() if device == "cuda" else _processor()
        return Environment(device, hardware, torch.get_num_threads(), _commit(), versions)

    @property
    def label(self) -> str:
        """The hardware and, on a CPU, the threads."""
        plural = "s" * (self.threads != 1)
        return f"{self.hardware}, {self.threads} thread{plural}" if self.device == "cpu" else self.hardware

    @property
    def origin(self) -> str:
        """Commit and versions in a line."""
        return f"Commit {self.commit}; {', '.join(f'{name} {version}' for name, version in self.versions.items())}."

    @property
    def name(self) -> str:
        """A file name's stem: ``cpu-2threads``, or the GPU's name."""
        if self.device == "cpu":
            return f"cpu-{self.threads}thread{'s' * (self.threads != 1)}"
        return "-".join("".join(ch if ch.isalnum() else " " for ch in self.hardware).lower().split())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    """The commit of the sources, with ``+`` where the packages differ from it."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "fastcfg", "kernels")
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
