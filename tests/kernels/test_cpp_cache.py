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


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Path]:
    """A compiler of one's own, a script."""
    script = tmp_path / "my compiler"
    monkeypatch.setenv("CXX", str(script))
    build.compiler.cache_clear()
    build._machine.cache_clear()
    yield script
    build.compiler.cache_clear()
    build._machine.cache_clear()


def _script(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_a_compiler_that_hangs_is_stopped_with_what_it_started(
    command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(command, f'[ "$1" = --version ] && exit 0\nsleep 600 & echo $! > {tmp_path}/child\nwait\n')
    monkeypatch.setattr(build, "PATIENCE", 1.0)
    with pytest.raises(RuntimeError, match="did not end in 1 s and was stopped"):
        build.load(TEXT)
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_compiler_that_prints_other_bytes(command: Path) -> None:
    _script(command, "printf 'caf\\351 \\377\\n'\n[ \"$1\" = --version ] || exit 1\n")
    with pytest.raises(RuntimeError, match="failed: caf"):
        build.load(TEXT)


def test_a_compiler_of_several_words(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(command, 'exec "$@"\n')
    monkeypatch.setenv("CXX", f"'{command}' g++ -DX=1")
    build.compiler.cache_clear()
    assert build.load(TEXT.replace("42", "41 + X")).answer() == 42


def test_a_whole_library_that_can_not_be_loaded_is_built_again(folder: Path) -> None:
    assert build.load(TEXT).answer() == 42
    (library,) = folder.iterdir()
    name = library.name.split("-")[0]
    library.unlink()
    content = b"\x7fELF of another system" * 20
    foreign = folder / "foreign.so"
    foreign.write_bytes(content)
    foreign.rename(folder / f"{name}-{build._digest(foreign)}.so")
    forget()
    assert build.load(TEXT).answer() == 42
    assert len(list(folder.iterdir())) == 1


def test_a_folder_under_one_that_others_can_write_is_not_used(folder: Path) -> None:
    shared = folder.parent.parent
    shared.chmod(0o777)
    assert build.load(TEXT).answer() == 42 and build.cache_folder() != folder
    forget()
    shared.chmod(0o1777)  # Where what one has made is one's own, as in /tmp.
    assert build.load(TEXT).answer() == 42 and build.cache_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_folders_are_made_for_this_user_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        assert build.load(TEXT).answer() == 42
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (folder, folder.parent)} == {0o700}
