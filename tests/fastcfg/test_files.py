"""Files are whole or not there."""

from pathlib import Path

import pytest

from fastcfg.files import write_atomically


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["x.json"]
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    directory = tmp_path / "folder"
    directory.mkdir()
    with pytest.raises(OSError):
        write_atomically(directory, "cannot take a folder's place")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "new"]
