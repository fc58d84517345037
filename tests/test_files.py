import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from nanonet.core.files import new_folder, sha256_file, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_there(tmp_path):
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "b", "é\n")
    write_json(tmp_path / "c", {"é": [1, None]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "é\n".encode()
    assert json.loads((tmp_path / "c").read_text(encoding="utf-8")) == {"é": [1, None]}
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"\x00\xff").hexdigest()
    assert names(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_new_folder_appears_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
    assert names(path) == ["a"]
    assert names(path.parent) == ["folder"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_an_old_folder_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("1")

    def fail():
        with new_folder(path) as temporary:
            (temporary / "new").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]
    with new_folder(path) as temporary:
        (temporary / "new").write_text("2")
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_an_old_folder_comes_back_when_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("1")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"), new_folder(path) as temporary:
        (temporary / "new").write_text("2")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("1")
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "1"
    assert names(tmp_path) == ["file"]
