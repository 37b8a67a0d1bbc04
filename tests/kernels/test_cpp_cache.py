"""The cache of compiled code: what is damaged is built again, what fails is told, and a forked process goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastcfg_kernels.backends.cpu import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")
TEXT = 'extern "C" int answer() { return 42; }'


def forget() -> None:
    build.cache_folder.cache_clear()
    build.load.cache_clear()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("FASTCFG_CACHE_DIR", str(tmp_path))
    forget()
    yield tmp_path / "fastcfg" / "cpp"
    forget()


def damaged(content: bytes) -> dict[str, bytes]:
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 16
    return {"empty": b"", "short": content[:100], "half": content[: len(content) // 2], "flipped": bytes(flipped)}


@pytest.mark.parametrize("kind", ["empty", "short", "half", "flipped", "link"])
def test_a_damaged_library_is_built_again(folder: Path, kind: str) -> None:
    assert build.load(TEXT).answer() == 42
    (library,) = folder.iterdir()
    content = library.read_bytes()
    library.unlink()  # The loaded one stays mapped.
    if kind == "link":
        elsewhere = folder.parent / "other.so"
        elsewhere.write_bytes(content)
        library.symlink_to(elsewhere)
    else:
        library.write_bytes(damaged(content)[kind])
    forget()
    assert build.load(TEXT).answer() == 42
    (again,) = folder.iterdir()
    assert not again.is_symlink() and again.stem.endswith(build._digest(again))


def test_a_folder_that_others_can_write_is_not_used(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert build.load(TEXT).answer() == 42
    assert not list(folder.iterdir()) and build.cache_folder() != folder


def test_a_disk_that_is_full_is_told_as_a_failure_of_the_compiler(folder: Path) -> None:
    code = (
        "import resource, torch, warnings, fastcfg\n"
        "u, c = torch.randn(2, 1, 64)\n"
        "expected = fastcfg.guide(fastcfg.CFG(3.0, rescale=0.5), uncond=u, cond=c, backend='torch')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    got = fastcfg.guide(fastcfg.CFG(3.0, rescale=0.5), uncond=u, cond=c)\n"
        "assert torch.equal(got, expected) and 'the torch path is used' in str(said[-1].message), said\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_guides_on_one_thread() -> None:
    """GNU's OpenMP leaves its threads in the parent; a call with several would wait for ever."""
    code = (
        "import os, signal, torch, fastcfg\n"
        "torch.set_num_threads(2)\n"
        "u, c = torch.randn(2, 1, 600_000)\n"
        "rule = fastcfg.CFG(3.0, rescale=0.5)\n"
        "expected = fastcfg.guide(rule, uncond=u, cond=c, backend='cpp').numpy()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(60)\n"
        "    got = fastcfg.guide(rule, uncond=u, cond=c, backend='cpp').numpy()\n"
        "    os._exit(0 if (got == expected).all() else 1)\n"
        "raise SystemExit(os.waitpid(child, 0)[1])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, signal.Signals(-done.returncode).name if done.returncode < 0 else "")
