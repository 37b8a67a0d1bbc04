"""``fastcfg comfyui install`` and ``uninstall``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from fastcfg.adapters import comfyui
from fastcfg.adapters.comfyui.install import install, uninstall
from fastcfg.cli.app import app


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "custom_nodes").mkdir()
    return tmp_path


def test_shim_has_the_nodes_of_the_interface_that_is_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = install(root) / "__init__.py"
    for name in ("comfy_api", "comfy_api.latest"):
        monkeypatch.setitem(sys.modules, name, None)
    found = runpy.run_path(str(shim))
    assert found["NODE_CLASS_MAPPINGS"] is comfyui.NODE_CLASS_MAPPINGS
    assert found["NODE_DISPLAY_NAME_MAPPINGS"] is comfyui.NODE_DISPLAY_NAME_MAPPINGS
    for name in ("comfy_api", "comfy_api.latest"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    found = runpy.run_path(str(shim))
    assert found["comfy_entrypoint"] is comfyui.comfy_entrypoint
    # ComfyUI takes the first interface wherever it finds one.
    assert "NODE_CLASS_MAPPINGS" not in found


def test_nothing_else_is_written(root: Path) -> None:
    install(root)
    assert [p.name for p in (root / "custom_nodes").iterdir()] == ["fastcfg"]
    assert [p.name for p in (root / "custom_nodes" / "fastcfg").iterdir()] == ["__init__.py"]


def test_a_folder_without_custom_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory: expected a ComfyUI installation"):
        install(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_again_needs_force(root: Path) -> None:
    shim = install(root) / "__init__.py"
    written = shim.read_text()
    shim.write_text(written + "# older\n")
    with pytest.raises(FileExistsError, match="--force"):
        install(root)
    install(root, force=True)
    assert shim.read_text() == written


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("foreign", ["other pack", "extra file", "file", "link"])
def test_what_is_not_ours_stays(root: Path, tmp_path: Path, foreign: str, force: bool) -> None:
    target = root / "custom_nodes" / "fastcfg"
    if foreign == "other pack":
        target.mkdir()
        (target / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    elif foreign == "extra file":
        install(root)
        (target / "mine.txt").write_text("kept")
    elif foreign == "file":
        target.write_text("kept")
    else:
        (root / "elsewhere").mkdir()
        target.symlink_to(root / "elsewhere")
    before = {p: p.read_text() for p in root.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match="not written by"):
        install(root, force=force)
    with pytest.raises(FileExistsError, match="not written by"):
        uninstall(root)
    assert {p: p.read_text() for p in root.rglob("*") if p.is_file()} == before


def test_a_write_that_fails_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        install(root)
    assert list((root / "custom_nodes").iterdir()) == []


def test_command(root: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["comfyui", "install", str(root)])
    assert result.exit_code == 0, result.output
    assert "custom_nodes" in result.output
    assert runner.invoke(app, ["comfyui", "install", str(root)]).exit_code == 1
    assert runner.invoke(app, ["comfyui", "install", "--force", str(root)]).exit_code == 0
    assert runner.invoke(app, ["comfyui", "uninstall", str(root)]).exit_code == 0
    result = runner.invoke(app, ["comfyui", "uninstall", str(root)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), "an error line, not a traceback"
