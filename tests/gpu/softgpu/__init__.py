"""A software GPU: runs the PTX that Triton compiles a kernel to, on a CPU, and says what is wrong with it."""

from .launch import Deadlock, Finding, Launch
from .memory import Buffer, Fault, Memory
from .parse import UnknownForm

__all__ = ["Buffer", "Deadlock", "Fault", "Finding", "Launch", "Memory", "UnknownForm"]
