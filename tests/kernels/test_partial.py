"""What is being written has its own name; what a killed process left goes at the next writing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastcfg_kernels.partial import errors_name, partial_file, partial_folder, write_whole

fcntl = pytest.importorskip("fcntl", reason="without locks nothing is taken for left behind")

WRITER = """
import sys, time
from pathlib import Path
from fastcfg_kernels.partial import partial_file, partial_folder
with (partial_folder if sys.argv[2] == "folder" else partial_file)(Path(sys.argv[1])) as made:
    (made / "part" if made.is_dir() else made).write_text("half")
    print(made, flush=True)
    time.sleep(600)
"""


def writer(path: Path, kind: str) -> "subprocess.Popen[str]":
    made = subprocess.Popen([sys.executable, "-c", WRITER, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None and made.stdout.readline()
    return made


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.onnx"
    like = [".model.onnx.backup", ".model.onnx.12345678", ".other.onnx.abcdefgh.partial"]
    for name in like:
        (tmp_path / name).write_text("not ours")
    living, killed = writer(path, kind), writer(path, kind)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(names(tmp_path)) == len(like) + 2
    write_whole(path, b"new")
    kept = [name for name in names(tmp_path) if name not in (*like, "model.onnx")]
    assert len(kept) == 1, "the living writer's own is there, the killed one's is gone"
    living.kill()
    living.wait()
    write_whole(path, b"newer")
    assert names(tmp_path) == sorted([*like, "model.onnx"]) and path.read_bytes() == b"newer"


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    for partial in (partial_file, partial_folder):
        with pytest.raises(KeyboardInterrupt), partial(tmp_path / "x"):
            raise KeyboardInterrupt
    assert not names(tmp_path)


def test_an_error_says_which_file_was_not_written(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=r"\[Errno 13\] no: '.*/x'") as raised, errors_name(tmp_path / "x"):
        raise PermissionError(13, "no", str(tmp_path / ".x.12345678.partial"))
    assert raised.value.filename == str(tmp_path / "x")
    with pytest.raises(OSError, match=r"^of no number$"), errors_name(tmp_path / "x"):
        raise OSError("of no number")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the limit of a file's size is Linux's")
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_whole(path, b"old")
    code = (
        "import resource, sys; from pathlib import Path; from fastcfg_kernels.partial import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_whole(Path(sys.argv[1]), bytes(100_000))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr and str(path) in done.stderr
    assert path.read_bytes() == b"old" and names(tmp_path) == ["x.bin"]


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    code = (
        "import sys; from pathlib import Path; from fastcfg_kernels.partial import write_whole\n"
        "for i in range(60): write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 5000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "abc"]
    seen = set()
    while any(w.poll() is None for w in writers):
        if path.exists():
            content = path.read_text()
            assert len(content) == 5000 and len(set(content)) == 1
            seen.add(content[0])
        time.sleep(0.001)
    assert [w.returncode for w in writers] == [0, 0, 0] and names(tmp_path) == ["x"] and seen
    assert os.stat(path).st_mode & 0o777 == 0o644


def _with_umask(umask: int, path: Path) -> None:
    before = os.umask(umask)
    try:
        write_whole(path, b"new")
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    _with_umask(umask, tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    _with_umask(0o022, path)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode


def test_a_link_stays_one(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "file"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new" and names(target.parent) == ["file"]


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            write_whole(path, b"new")
    assert pipe.is_fifo() and Path("/dev/null").is_char_device() and names(tmp_path) == ["pipe"]


def test_a_name_that_is_taken_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr("fastcfg_kernels.partial.secrets.token_hex", lambda size: next(tokens))
    victim = tmp_path / "victim"
    victim.write_bytes(b"old")
    (tmp_path / f".file.{'0' * 16}.partial").symlink_to(victim)
    monkeypatch.setattr("fastcfg_kernels.partial._clear", lambda path: None)
    write_whole(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"old" and (tmp_path / "file").read_bytes() == b"new"
