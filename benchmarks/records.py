"""Result files: what was measured and where, as JSON and Markdown; their ``kind`` says what the rows are."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from fastcfg.files import write_atomically

from .environment import Environment

__all__ = ["OtherKind", "Record", "markdown_table", "read", "terminal_table"]


@dataclass(frozen=True)
class Record:
    """One result.

    Attributes:
        kind: what the rows are of; name: the stem of the files.
        rows: mappings with the same names, whose values are numbers, text, sequences of these or flat mappings.
        text: the Markdown; more: further entries of the JSON.
    """

    kind: str
    name: str
    environment: Environment
    rows: Sequence[Mapping[str, Any]]
    text: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON holds."""
        head = {"kind": self.kind, **self.more, "environment": asdict(self.environment)}
        return {**head, "rows": [dict(row) for row in self.rows]}

    def to_json(self) -> str:
        """A JSON object, one row a line."""
        head = self.to_dict()
        rows = [json.dumps(row, ensure_ascii=False) for row in head.pop("rows")]
        begin = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
        return begin + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"

    def write(self, folder: Path) -> list[Path]:
        """JSON and Markdown into a folder, each of them whole or not at all.

        They take the place of an older result of the same from the same machine, whatever its files are called.
        """
        for stem in self._older(folder):
            for suffix in (".json", ".md"):
                (folder / f"{stem}{suffix}").unlink(missing_ok=True)
        written = []
        for suffix, text in ((".json", self.to_json()), (".md", self.text)):
            written.append(folder / (self.name + suffix))
            write_atomically(written[-1], text)
        return written

    def _older(self, folder: Path) -> Iterator[str]:
        """Stems of other names with which the same was written."""
        own = self.to_dict()
        for path in folder.glob("*.json"):
            try:
                data = read(path, (self.kind,))
            except ValueError:
                continue
            if path.stem != self.name and _place(data) == _place(own):
                yield path.stem


def _place(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the results that replace each other have in common."""
    where = data.get("environment") or {}
    return *(where.get(name) for name in ("device", "hardware", "threads")), data.get("cache", "hot")


class OtherKind(ValueError):
    """A file whose kind is not the one asked for, or that has none."""


def read(path: Path, kinds: Collection[str]) -> dict[str, Any]:
    """A result file of one of these kinds.

    Raises:
        ValueError: naming the file, if it can't be read; :class:`OtherKind`, if it is of another kind.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a result file: {error}") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in kinds:
        found = f"its kind is {kind!r}" if kind else "it has no kind"
        raise OtherKind(f"{path} is not a result file of {' or '.join(kinds)}: {found}")
    return data  # type: ignore[no-any-return]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def terminal_table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """The same for a terminal."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    return table
