"""A folder of results as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcfg.files import write_atomically

from .content import Section
from .numbers import listed
from .page import Missing, Page, render
from .results import Folder, Result, read_folder
from .sections import PARTS, comparison
from .tables import tabulate, words

__all__ = ["write_report"]


def write_report(
    folder: Path, path: Path, compare: tuple[Path, Path] | None = None, *, recorded: Path | None = None
) -> Path:
    """Write a report of all results in a folder: one HTML file that needs no other and no network.

    A part without results is left out and named, with the command that makes them; so is a file that can't be read.

    Args:
        folder: holds result files and the pictures that they name.
        path: of the HTML file, written whole or not at all.
        compare: two folders of results, the older first, for a part that says what changed.
        recorded: another folder, whose results stand in for kinds that ``folder`` has none of.

    Returns:
        ``path``.

    Raises:
        ValueError: if a folder is none, or the two have nothing in common.
    """
    found = read_folder(folder)
    if recorded is not None and recorded.is_dir():
        found = found.with_kinds_of(read_folder(recorded))
    sections = [] if compare is None else [comparison.build(*compare)]
    built, missing = _sections(found)
    sections += built
    page = Page(
        "Guidance, measured",
        _lead(found),
        sections,
        tabulate(
            "Result files: where and from which commit each was measured",
            found.results,
            words("file", lambda r: r.path.name),
            words("kind", lambda r: r.kind),
            words("machine", lambda r: r.where),
            words("commit", lambda r: r.environment.get("commit", "–")),
            words("versions", lambda r: _versions(r)),
        ),
        missing,
        "Made by fastcfg bench or python -m benchmarks.html. Every number is computed from the result files named "
        "above; no row is left out for its result.",
    )
    write_atomically(path, render(page))
    return path


def _sections(found: Folder) -> tuple[list[Section], list[Missing]]:
    sections, missing = [], []
    for part in PARTS:
        results = found.of(*part.kinds)
        if not results:
            missing.append(Missing(part.title, "No results.", part.command))
            continue
        try:
            section = part.build(results)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            # The files are not ours to trust: one of another form costs its part of the report, not the report.
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            names = ", ".join(result.path.name for result in results)
            missing.append(Missing(part.title, f"{names} has not the form that is expected: {what}.", part.command))
            continue
        if section.blocks:
            sections.append(section)
        else:
            missing.append(Missing(part.title, "Files without a result.", part.command))
    known = {kind for part in PARTS for kind in part.kinds}
    missing.extend(
        Missing(result.path.name, f"Has a kind that is not known: {result.kind}.")
        for result in found.results
        if result.kind not in known
    )
    missing.extend(Missing(name, f"{why[0].upper()}{why[1:]}.") for name, why in found.unread)
    return sections, missing


def _lead(found: Folder) -> str:
    hardware = dict.fromkeys(str(result.environment.get("hardware", "unknown")) for result in found.results)
    machines = [name for name in hardware if name != "unknown"]
    where = f" on {listed(machines)}" if machines else ""
    return (
        f"What fastcfg costs and gives beside the code that it replaces, measured{where}: speed, accuracy and "
        "quality, with the rows where there is nothing to gain."
    )


def _versions(result: Result) -> str:
    versions: Any = result.environment.get("versions") or result.data.get("versions")
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else "–"
