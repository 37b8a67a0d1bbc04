"""What the wheel holds, and what importing the packages brings in."""

import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fastcfg

ROOT = Path(__file__).parents[2]
EXTRAS = ["diffusers", "transformers", "typer", "rich", "matplotlib", "mlxtend", "safetensors", "onnx"]
"""What an extra brings."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made of it."""
    # A copy without build leftovers, and no network: the build backend is the one that is installed.
    source = tmp_path_factory.mktemp("source") / "fastcfg"
    leave = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "outputs", "tests", "benchmarks", "*.pt")
    shutil.copytree(ROOT, source, ignore=leave)
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (found,) = built.glob("*.whl")
    assert found.name.startswith(f"fastcfg_diffusion-{fastcfg.__version__}-py3-none-any")
    return zipfile.ZipFile(found)


def test_an_index_would_take_both(built: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_installed_wheel_works_with_torch_alone(built: Path, tmp_path: Path) -> None:
    """Without this tree, in a place of its own; packages that are no dependency can't be imported."""
    (found,) = built.glob("*.whl")
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, found]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))
import torch, fastcfg, fastcfg_export, fastcfg_kernels
assert all(m.__file__.startswith({str(target)!r}) for m in (fastcfg, fastcfg_export, fastcfg_kernels))
u, c = torch.randn(2, 2, 4, 8, 8)
assert fastcfg.guide(fastcfg.CFG(3.0, rescale=0.5), uncond=u, cond=c).isfinite().all()
import fastcfg.cli.app
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(target)},
    )  # fmt: skip
    assert done.returncode == 1 and "pip install 'fastcfg-diffusion[cli]'" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


OTHER = {
    "pyproject.toml": """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "fastcfg"
version = "0.1.0"
[tool.setuptools]
packages = ["fastcfg"]
""",
    "fastcfg/__init__.py": "raise RuntimeError('the other one')\n",
}
"""A distribution of the name that the index has for another library, whose module has our name."""


@pytest.mark.parametrize("order", ["ours last", "theirs last"])
def test_the_command_names_the_clash_with_another_distribution(built: Path, tmp_path: Path, order: str) -> None:
    source = tmp_path / "other"
    for name, text in OTHER.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, "utf-8")
    (ours,) = built.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    for one in (source, ours) if order == "ours last" else (ours, source):
        done = subprocess.run([*install, "--upgrade", "--target", target, one], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    code = "import sys; sys.argv = ['fastcfg', '--help']; from fastcfg_kernels.console import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(target)},
    )  # fmt: skip
    remedy = "pip uninstall fastcfg && pip install --force-reinstall --no-deps fastcfg-diffusion"
    assert remedy in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (1 if order == "theirs last" else 0)
    assert ("Usage: fastcfg" in done.stdout) == (order == "ours last")


def test_top_levels(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert packages == {"fastcfg", "fastcfg_kernels", "fastcfg_export"}


def test_every_module_and_data_file_is_in(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package, folder in (("fastcfg", "fastcfg"), ("fastcfg_kernels", "kernels/fastcfg_kernels"),
                            ("fastcfg_export", "export/fastcfg_export")):  # fmt: skip
        assert f"{package}/py.typed" in names
        modules = {f"{package}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
        assert modules <= names, f"not in the wheel: {sorted(modules - names)}"
    checkpoints = [name for name in names if name.startswith("fastcfg/demo/checkpoints/")]
    assert {Path(name).suffix for name in checkpoints} == {".safetensors"} and len(checkpoints) == 3
    assert sum(wheel.getinfo(name).file_size for name in checkpoints) < 3 * 2**20
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_metadata(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(path).decode()
    assert f"\nVersion: {fastcfg.__version__}\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert {line.split()[1].split(">")[0] for line in required} == {"torch", "numpy"}
    assert "Requires-Dist: torch" in required, "a bound of torch lets pip replace the build of a host"


def test_extras_that_refer_to_extras_name_this_distribution(wheel: zipfile.ZipFile) -> None:
    """An extra of another distribution's name would install a stranger's package."""
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(path))
    known = set(metadata.get_all("Provides-Extra", []))
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    own = [one for one in requirements if one.name.startswith("fastcfg")]
    assert metadata["Name"] == "fastcfg-diffusion" and {one.name for one in own} == {"fastcfg-diffusion"}
    assert own and all(one.extras and one.extras <= known for one in own)


def test_no_text_installs_another_distribution() -> None:
    """``fastcfg`` on the index is a configuration library with a module of the same name."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the tree is no git checkout, whose files could be listed")
    pattern = re.compile(r"pip install (-U |--upgrade )?['\"]?fastcfg(['\"\s]|\[|$)|['\"]fastcfg\[[a-z]")
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".sh"} and path.is_file() and path != Path(__file__):
            found = pattern.search(path.read_text("utf-8"))
            assert found is None, f"{name}: {found and found[0]!r}; the distribution is fastcfg-diffusion"


def test_version_of_the_installed_distribution() -> None:
    assert importlib.metadata.version("fastcfg-diffusion") == fastcfg.__version__


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_import_needs_torch_alone(where: str, tmp_path: Path) -> None:
    heavy = [*EXTRAS, "torch._inductor"]
    code = f"import sys, json, fastcfg, fastcfg_export; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    folder = ROOT if where == "root" else tmp_path
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_it_works_without_triton(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch, fastcfg
u, c = torch.randn(2, 2, 4, 8, 8)
assert fastcfg.guide(fastcfg.CFG(3.0, rescale=0.5), uncond=u, cond=c).isfinite().all()
try:
    fastcfg.guide(fastcfg.CFG(3.0, rescale=0.5), uncond=u, cond=c, backend="triton")
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "backend: 'triton' is not available: Triton is not installed" in done.stdout
