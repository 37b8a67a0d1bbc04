"""Files are whole or not there, and say so when they changed."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastcfg.files import load_tensors, save_tensors, tensors_digest, write_atomically


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64])
def test_tensors_and_what_is_said_of_them_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    path, tensors = tmp_path / "t.safetensors", {"a": torch.ones(2, 3).to(dtype), "0-dim": torch.ones(()).to(dtype)}
    save_tensors(path, {**tensors, "none": torch.empty(0, 4)}, {"n": 1.5, "by number": {2: "two", 10: "ten"}})
    found, metadata = load_tensors(path)
    assert metadata == {"n": 1.5, "by number": {"2": "two", "10": "ten"}}
    assert found["none"].shape == (0, 4)
    assert all(
        found[name].dtype == dtype and torch.equal(found[name].double(), t.double()) for name, t in tensors.items()
    )


def test_every_bit_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(1, dtype=torch.int32)}, {"n": 1})
    whole, (tensors, metadata) = path.read_bytes(), load_tensors(path)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found, said = load_tensors(path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        # A blank that became another blank, or a digit of a length that is written in two ways.
        assert said == metadata and tensors_digest(found) == tensors_digest(tensors), bit


def test_a_file_without_a_digest_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"a": torch.ones(2)}, path, {"fastcfg": '{"n": 1}'})
    assert load_tensors(path)[1] == {"n": 1}
    save_file({"a": torch.ones(2)}, path, {"fastcfg": '{"content": {"n": 1}}'})
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged: .* SHA-256"):
        load_tensors(path)


def test_digests_are_of_names_dtypes_shapes_and_bytes() -> None:
    expected = hashlib.sha256(b"a torch.float32 [1, 2]\n" + bytes(8) + b"b torch.int64 []\n" + bytes(8)).hexdigest()
    assert tensors_digest({"b": torch.tensor(0), "a": torch.zeros(1, 2)}) == expected
