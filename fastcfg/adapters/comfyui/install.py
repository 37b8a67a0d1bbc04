"""The pack's shim in a ComfyUI installation: ``DIR/custom_nodes/fastcfg``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ...files import write_atomically

__all__ = ["install", "uninstall"]

_MARK = "# Written by `fastcfg comfyui install`; `fastcfg comfyui uninstall` removes it."
_SHIM = f'''{_MARK}
"""Guidance nodes of fastcfg."""

import sys

try:
    from fastcfg.adapters import comfyui
except ImportError as error:
    raise ImportError(
        f"fastcfg can't be imported by ComfyUI's Python ({{error}}); install it there: "
        f"{{sys.executable}} -m pip install fastcfg-diffusion"
    ) from error

try:
    import comfy_api.latest
except ImportError:
    NODE_CLASS_MAPPINGS = comfyui.NODE_CLASS_MAPPINGS
    NODE_DISPLAY_NAME_MAPPINGS = comfyui.NODE_DISPLAY_NAME_MAPPINGS
else:
    comfy_entrypoint = comfyui.comfy_entrypoint
'''


def _target(directory: Path) -> Path:
    """The folder of the shim.

    Raises:
        ValueError: if the directory is no ComfyUI installation.
    """
    nodes = directory / "custom_nodes"
    if not nodes.is_dir():
        raise ValueError(f"directory: expected a ComfyUI installation with a folder custom_nodes, got {directory}")
    return nodes / "fastcfg"


def _check_own(target: Path) -> None:
    """Raise a FileExistsError unless the folder holds this shim alone."""
    own = {"__init__.py", "__pycache__"}
    shim = target / "__init__.py"
    names = {entry.name for entry in target.iterdir()} if target.is_dir() and not target.is_symlink() else None
    if names is None or not names <= own or not shim.is_file() or not shim.read_text("utf-8").startswith(_MARK):
        raise FileExistsError(
            f"{target}: is there and was not written by `fastcfg comfyui install`; move it away first"
        )


def install(directory: Path | str, *, force: bool = False) -> Path:
    """Write the shim, whole or not at all.

    Args:
        directory: of the ComfyUI installation, the one with ``custom_nodes``.
        force: write an existing shim again; files that are not the shim's are never touched.

    Returns:
        The folder.

    Raises:
        ValueError: if the directory is no ComfyUI installation.
        FileExistsError: if the shim is there already, or something else in its place.
    """
    target = _target(Path(directory))
    if target.exists() or target.is_symlink():
        _check_own(target)
        if not force:
            raise FileExistsError(f"{target}: is installed already; use --force to write it again")
        write_atomically(target / "__init__.py", _SHIM)
        return target
    # A folder whose name begins with a dot is no node pack to ComfyUI, should it come to look in between.
    made = Path(tempfile.mkdtemp(prefix=".fastcfg-", dir=target.parent))
    try:
        made.chmod(0o755)
        write_atomically(made / "__init__.py", _SHIM)
        made.rename(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return target


def uninstall(directory: Path | str) -> Path:
    """Remove the shim.

    Raises:
        ValueError: if the directory is no ComfyUI installation, or has no shim.
        FileExistsError: if the folder was not written by :func:`install`.
    """
    target = _target(Path(directory))
    if not target.exists():
        raise ValueError(f"directory: expected fastcfg to be installed, got no {target}")
    _check_own(target)
    shutil.rmtree(target)
    return target
