"""``fastcfg info --verify``: which launch strategies work on this GPU, recorded for ``auto``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]


def command(console: Console) -> None:
    """Run the strategies, each in a process of its own, and print how they did.

    Raises:
        RuntimeError: if there is no GPU, or a strategy did not pass.
        OSError: if the record can't be written.
    """
    from fastcfg_kernels.backends.triton.verified import record_path
    from fastcfg_kernels.backends.triton.verify import verify

    with console.status("running every launch strategy against float64 (minutes at most)"):
        outcomes = verify()
    for outcome in outcomes:
        console.print(f"triton {outcome.strategy}: {'passed' if outcome.passed else 'failed'}, {outcome.reason}")
    console.print(f"recorded in {record_path()}", style="dim", highlight=False)
    if failed := [outcome.strategy for outcome in outcomes if not outcome.passed]:
        raise RuntimeError(f"verify: {', '.join(failed)} did not pass and will not be chosen")
