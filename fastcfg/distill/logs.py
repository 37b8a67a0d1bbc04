"""A training run as seen from outside: a bar, JSON lines, and TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..files import write_atomically

__all__ = ["Log"]


class Log:
    """Shows and writes each step.

    Args:
        path: JSON lines; a resumed run keeps those up to ``begin`` and adds to them.
        total: steps of the run.
        begin: steps that were done before.
        bar: show a progress bar.
        write: write files (the first of several processes does).
        board: also TensorBoard events, into ``tensorboard`` beside ``path``.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, path: Path, total: int, *, begin: int = 0, bar: bool = True, write: bool = True, board: bool = False
    ) -> None:
        self.total, self.begin, self.show = total, begin, bar
        self._path = path if write else None
        self._file: IO[str] | None = None
        self._board: Any = None
        self._bar: Any = None
        if write and board:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    f"events need TensorBoard ({error}): pip install 'fastcfg-diffusion[distill]'"
                ) from error
            self._board = SummaryWriter(path.parent / "tensorboard", purge_step=begin + 1)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Log:
        if self._path is not None:
            lines = self._path.read_text().splitlines(keepends=True) if self.begin and self._path.exists() else []
            write_atomically(self._path, "".join(line for line in lines if _step_of(line) <= self.begin))
            self._file = self._path.open("a")
        if self.show:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("distilling"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, completed=self.begin)
        return self

    def step(self, step: int, loss: float, smooth_loss: float, learning_rate: float) -> None:
        """One optimiser step, counted from 1."""
        if self._file is not None:
            entry = {"step": step, "loss": loss, "smooth_loss": smooth_loss, "learning_rate": learning_rate}
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in (("loss", loss), ("learning_rate", learning_rate)):
                self._board.add_scalar(name, value, step)
        if self._bar is not None:
            # The loss is a squared relative error.
            description = f"relative error {100 * smooth_loss**0.5:.2f} %"
            self._bar.update(self._task, completed=step, description=description)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for resource in (self._file, self._board):
            if resource is not None:
                resource.close()
        if self._bar is not None:
            self._bar.stop()


def _step_of(line: str) -> float:
    """The step of a log's line; a line that a kill cut short is after all of them."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
