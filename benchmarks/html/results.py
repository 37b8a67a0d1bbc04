"""A folder of results, found by their kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["Folder", "Result", "read_folder"]


@dataclass(frozen=True)
class Result:
    """One result file.

    Attributes:
        data: the JSON object.
    """

    path: Path
    kind: str
    data: Mapping[str, Any]

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where it was measured, as far as it says."""
        found = self.data.get("environment")
        return found if isinstance(found, dict) else {}

    @property
    def where(self) -> str:
        """Hardware and threads in a few words."""
        hardware, threads = self.environment.get("hardware"), self.environment.get("threads")
        if self.environment.get("device", "cpu") != "cpu" or threads is None:
            return str(hardware or self.path.stem)
        return f"{hardware}, {threads} thread{'s' * (threads != 1)}"


@dataclass(frozen=True)
class Folder:
    """All result files of a folder.

    Attributes:
        results: in the order of their names; unread: files that are no results, and why.
    """

    path: Path
    results: tuple[Result, ...]
    unread: tuple[tuple[str, str], ...] = ()

    def of(self, *kinds: str) -> list[Result]:
        """The results of these kinds."""
        return [result for result in self.results if result.kind in kinds]

    def with_kinds_of(self, other: Folder) -> Folder:
        """The same with another folder's results of the kinds that are missing here."""
        here = {result.kind for result in self.results}
        more = tuple(result for result in other.results if result.kind not in here)
        return replace(self, results=self.results + more)


def read_folder(folder: Path) -> Folder:
    """Every JSON file of a folder that says its ``kind``.

    Raises:
        ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: expected a folder of results, got {str(folder)!r}")
    results, unread = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            unread.append((path.name, f"is not readable JSON: {error}"))
            continue
        kind = data.get("kind") if isinstance(data, dict) else None
        if isinstance(kind, str) and isinstance(data, dict):
            results.append(Result(path, kind, data))
        else:
            unread.append((path.name, "does not say its kind"))
    return Folder(folder, tuple(results), tuple(unread))
