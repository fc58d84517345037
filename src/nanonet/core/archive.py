"""A bundle as one zip file, unpacked with suspicion. Standard library only."""

import json
import lzma
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from nanonet.core.bundle import MANIFEST, MANIFEST_LIMIT, parse_manifest
from nanonet.core.errors import BundleError

BYTES_LIMIT = 4 * 2**30  # of everything unpacked
RATIO_LIMIT = 100  # unpacked to packed: weights and tokenizers stay below 10, zip bombs do not
SMALL = 64 * 2**20  # bytes up to which the ratio does not matter
# What zipfile raises for archives that are truncated, altered, encrypted or of unknown kinds.
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)


@contextmanager
def opened_bundle(path: Path) -> Iterator[Path]:
    """Yield a bundle's folder: ``path`` itself, or what a zip file of it holds.

    A zip file may hold the bundle's files at its top or in one folder. Only the manifest and what
    it lists are unpacked, into a temporary folder that is removed when the block ends.

    Raises:
        BundleError: the archive cannot be read, is no bundle's, or is not safe to unpack; errors
            about the unpacked folder name the archive instead.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="nanonet-") as name:
        folder = Path(name)
        try:
            _unpack(path, folder)
            yield folder
        except BundleError as error:
            raise BundleError(str(error).replace(str(folder), str(path))) from None


def _unpack(path: Path, folder: Path) -> None:
    """Write the manifest and the files that it lists into an empty folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, path)
            _extract(archive, entries[MANIFEST], folder / MANIFEST)
            listed = parse_manifest(folder / MANIFEST).files
            chosen = {name: entries[name] for name in listed if name in entries}
            _check_sizes(chosen, path)
            for name, entry in chosen.items():
                _extract(archive, entry, folder / name)
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{path} is no zip file of a bundle, or damaged: {reason}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be unpacked: {error.strerror or error}") from None


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the files beside the manifest by name, after a look at every entry."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        place = _safe_place(entry, path)
        if entry.is_dir():
            continue
        if place in found:
            raise BundleError(f"{path} is not safe to unpack: it holds {place} twice")
        found[place] = entry
    roots = [p.parent for p in found if p.name == MANIFEST and len(p.parts) <= 2]
    if len(roots) != 1:
        several = f"several ({len(roots)}) {MANIFEST}" if roots else f"no {MANIFEST}"
        raise BundleError(f"{path} is not a bundle: it holds {several} (zip the bundle's folder)")
    entries = {p.name: entry for p, entry in found.items() if p.parent == roots[0]}
    if entries[MANIFEST].file_size > MANIFEST_LIMIT:
        raise BundleError(f"{path} is damaged: its {MANIFEST} is too large")
    return entries


def _safe_place(entry: zipfile.ZipInfo, path: Path) -> PurePosixPath:
    """Return where in the archive an entry lies.

    Raises:
        BundleError: a name that leads elsewhere on some system, a link, or an encrypted entry.
    """
    name = entry.orig_filename  # what zipfile has not mended yet
    place = PurePosixPath(name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "is a link or a device"
    elif entry.flag_bits & 1:
        problem = "is encrypted"
    elif "\\" in name or "\0" in name or PureWindowsPath(name).drive:
        problem = "has a name that is not portable"
    elif place.is_absolute() or ".." in place.parts or not place.parts:
        problem = "would be written outside of its folder"
    else:
        return place
    raise BundleError(f"{path} is not safe to unpack: its entry {json.dumps(name)} {problem}")


def _check_sizes(entries: dict[str, zipfile.ZipInfo], path: Path) -> None:
    """Refuse zip bombs. zipfile never yields more bytes of an entry than it declares."""
    declared = sum(entry.file_size for entry in entries.values())
    limit = min(BYTES_LIMIT, max(SMALL, RATIO_LIMIT * path.stat().st_size))
    if declared > limit:
        raise BundleError(
            f"{path} is not safe to unpack: {declared / 1e6:,.0f} MB out of"
            f" {path.stat().st_size / 1e6:,.1f} MB (at most {limit / 1e6:,.0f} MB are accepted);"
            " unzip it yourself if you trust it"
        )


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(entry) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
