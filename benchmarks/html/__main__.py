"""``python -m benchmarks.html [FOLDER] [-o FILE]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import write_report

RESULTS = Path(__file__).parent.parent / "results"
app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path | None, typer.Argument(help="Folder of results; default: the recorded ones.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: report.html in the folder.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="Also say what changed between two folders; FOLDER is then NEW."),
    ] = None,
) -> None:
    """Write a folder's results as one HTML file that needs no network and no other file."""
    folder = folder or (compare[1] if compare else RESULTS)
    try:
        path = write_report(folder, output or folder / "report.html", compare)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    Console().print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
