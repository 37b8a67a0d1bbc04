"""The start of the command ``fastcfg``, outside of the package that another distribution may have overwritten."""

from __future__ import annotations

import base64
import hashlib
import importlib
import sys
from dataclasses import dataclass
from importlib import metadata

__all__ = ["Clash", "find_clash", "main"]

_DISTRIBUTION = "fastcfg-diffusion"
_OTHER = "fastcfg"


@dataclass(frozen=True)
class Clash:
    """Two distributions with one module.

    Attributes:
        message: what is installed, and the remedy.
        lost: whether the module is the other's.
    """

    message: str
    lost: bool


def find_clash() -> Clash | None:
    """Return the clash with the distribution ``fastcfg``, a configuration library, or None without one.

    Both write ``fastcfg/__init__.py``; whichever pip installed last has it. The file is compared with the hash that
    pip recorded for ours, so that nothing of the other is run.
    """
    try:
        other = metadata.distribution(_OTHER)
        own = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    recorded = next((file for file in own.files or () if str(file) == "fastcfg/__init__.py"), None)
    if recorded is None or recorded.hash is None:  # An editable installation has no files to overwrite.
        return None
    digest = hashlib.new(recorded.hash.mode, recorded.read_binary()).digest()
    lost = base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != recorded.hash.value
    return Clash(
        f"the distribution 'fastcfg' {other.version} and {_DISTRIBUTION} {own.version} have one module, fastcfg, which "
        f"now is {'the' if lost else 'no longer the'} other's; "
        f"pip uninstall fastcfg && pip install --force-reinstall --no-deps {_DISTRIBUTION}",
        lost,
    )


def main() -> None:
    """Run the command line, or say in one line why it can't be the one that was installed."""
    clash = find_clash()
    if clash is not None:
        print(f"fastcfg: {clash.message}", file=sys.stderr)
        if clash.lost:
            raise SystemExit(1)
    importlib.import_module("fastcfg.cli.app").app()
