import json
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest

from nanonet.core import archive as module
from nanonet.core.errors import BundleError
from nanonet.runtime.predictor import Predictor
from runs import refuse, succeed
from test_bundle import refuse_bundle

TEXTS = ["the old apple", "iron", ""]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where archives are unpacked; nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def pack(bundle: Path, target: Path, top: str = "", skip: tuple[str, ...] = ()) -> Path:
    """Zip a bundle's files, below a top folder where one is named."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(bundle.iterdir()):
            if file.name not in skip:
                archive.write(file, f"{top}{file.name}")
    return target


def add(target: Path, name: str, content: bytes = b"x", mode: int = 0) -> None:
    """Add an entry under a name that zipfile would mend."""
    entry = zipfile.ZipInfo("x")
    entry.filename = entry.orig_filename = name
    entry.external_attr = mode << 16
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(entry, content)


@pytest.mark.parametrize("top", ["", "my bundle/", "v1.2/"])
def test_a_zip_file_is_as_good_as_its_folder(bundle, tmp_path, top):
    path = pack(bundle, tmp_path / "bundle.zip", top)
    found = Predictor.load(path).predict_logits(TEXTS)
    assert (found == Predictor.load(bundle).predict_logits(TEXTS)).all()


def test_from_the_command_line(bundle, corpus, tmp_path):
    path = pack(bundle, tmp_path / "bundle.zip")
    assert succeed("predict", path, "apple").out == succeed("predict", bundle, "apple").out
    test = ["--data", corpus / "test.csv", "--json"]
    scores = [json.loads(succeed("evaluate", b, *test).out) for b in (path, bundle)]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]


def test_what_the_manifest_does_not_list_is_left_in_the_archive(bundle, tmp_path, monkeypatch):
    path = pack(bundle, tmp_path / "bundle.zip", "b/")
    add(path, "__MACOSX/b/._manifest.json")
    add(path, "b/notes/manifest.json")
    add(path, "b/huge", b"\0" * 2**20)
    monkeypatch.setattr(module, "BYTES_LIMIT", sum(f.stat().st_size for f in bundle.iterdir()))
    with module.opened_bundle(path) as folder:
        assert {f.name for f in folder.iterdir()} == {f.name for f in bundle.iterdir()}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("../model.onnx", "outside of its folder"),
        ("b/../../x", "outside of its folder"),
        ("/etc/x", "outside of its folder"),
        ("..", "outside of its folder"),
        ("C:/x", "not portable"),
        ("c:x", "not portable"),
        ("..\\x", "not portable"),
        ("model\0.onnx", "not portable"),
    ],
)
def test_names_that_lead_elsewhere(bundle, tmp_path, name, part):
    path = pack(bundle, tmp_path / "bundle.zip")
    add(path, name)
    refuse_bundle(path, str(path), "not safe to unpack", part)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(bundle, tmp_path, kind):
    path = pack(bundle, tmp_path / "bundle.zip", skip=("model.onnx",))
    add(path, "model.onnx", b"/etc/hostname", kind | 0o777)
    refuse_bundle(path, str(path), '"model.onnx" is a link or a device')


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "./seen.bin"])
def test_a_name_that_occurs_twice(bundle, tmp_path, name):
    path = pack(bundle, tmp_path / "bundle.zip")
    add(path, name)
    refuse_bundle(path, "not safe to unpack", "twice")


def test_a_zip_bomb(bundle, tmp_path, monkeypatch):
    path = pack(bundle, tmp_path / "bundle.zip", skip=("model.onnx",))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.onnx", b"\0" * 4 * 2**20)
    refuse_bundle(path, "model.onnx", "checksum")  # small enough to look at
    monkeypatch.setattr(module, "SMALL", 2**20)
    refuse_bundle(path, str(path), "not safe to unpack: 4 MB out of", "are accepted")
    monkeypatch.setattr(module, "RATIO_LIMIT", 10_000)
    refuse_bundle(path, "model.onnx", "checksum")
    monkeypatch.setattr(module, "BYTES_LIMIT", 3 * 2**20)
    refuse_bundle(path, "not safe to unpack")


def test_a_size_that_is_a_lie(bundle, tmp_path):
    """No more is unpacked than was declared and counted."""
    path = pack(bundle, tmp_path / "bundle.zip", skip=("model.onnx",))
    add(path, "model.onnx", b"\0" * 5000)
    data = path.read_bytes()
    place = data.rindex(b"PK\x01\x02")  # the last entry of the central directory
    lie = data[: place + 24] + (100).to_bytes(4, "little") + data[place + 28 :]
    path.write_bytes(lie)
    refuse_bundle(path, str(path), "damaged")


def test_a_manifest_without_end(bundle, tmp_path, monkeypatch):
    path = pack(bundle, tmp_path / "bundle.zip")
    monkeypatch.setattr(module, "MANIFEST_LIMIT", 1000)
    refuse_bundle(path, str(path), "manifest.json is too large")


def test_an_encrypted_archive(bundle, tmp_path):
    path = pack(bundle, tmp_path / "bundle.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    refuse_bundle(path, str(path), "is encrypted")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_archive(bundle, tmp_path, share):
    path = pack(bundle, tmp_path / "bundle.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refuse_bundle(path, str(path), "no zip file of a bundle, or damaged")


@pytest.mark.parametrize("place", [0.2, 0.6])
def test_an_altered_archive(bundle, tmp_path, place):
    path = pack(bundle, tmp_path / "bundle.zip")
    data = bytearray(path.read_bytes())
    for i in range(20):
        data[int(place * len(data)) + i] ^= 255
    path.write_bytes(data)
    refuse_bundle(path, str(path))


def test_files_that_are_missing_or_altered_are_told_of_the_archive(bundle, tmp_path):
    path = pack(bundle, tmp_path / "bundle.zip", skip=("tokenizer.json",))
    refuse_bundle(path, f"bundle {path} lacks tokenizer.json")
    add(path, "tokenizer.json", b"{}")
    refuse_bundle(path, f"{path / 'tokenizer.json'} is not what was exported")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_bundle_inside(bundle, tmp_path):
    path = pack(bundle, tmp_path / "a.zip", skip=("manifest.json",))
    refuse_bundle(path, f"{path} is not a bundle", "no manifest.json")
    deep = pack(bundle, tmp_path / "b.zip", "one/two/")
    refuse_bundle(deep, "no manifest.json")
    twins = pack(bundle, tmp_path / "c.zip", "one/")
    add(twins, "two/manifest.json")
    refuse_bundle(twins, "several (2) manifest.json")


def test_files_of_other_kinds(bundle, corpus):
    for path in (bundle / "model.onnx", corpus / "test.csv"):
        refuse_bundle(path, f"{path} is no zip file of a bundle")
        refuse("evaluate", path, "--data", corpus / "test.csv", parts=[str(path)])


def test_a_full_disk(bundle, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    path = pack(bundle, tmp_path / "bundle.zip")
    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(BundleError, match="cannot be unpacked: No space left on device"):
        Predictor.load(path)
