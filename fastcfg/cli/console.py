"""The console and the end of a failed command, which every command shares; needs typer and rich."""

from __future__ import annotations

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ImportError as error:  # The library itself needs neither.
    raise SystemExit(
        f"fastcfg: the command line needs typer and rich ({error}); pip install 'fastcfg-diffusion[cli]'"
    ) from None

__all__ = ["Table", "console", "fail", "typer"]

console = Console()


def fail(error: Exception) -> typer.Exit:
    """Print an error in one line and return the exit that ends the command."""
    Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    return typer.Exit(1)
