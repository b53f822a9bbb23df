"""Decoded and resized slices on disk, found again by the content of the files that they were made from."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ppcmi_fast.data.records import Mask, Pixels, Record, Source
from ppcmi_fast.errors import DataError

# A part of every entry's name: raise it when decoding or resizing changes, and no old entry is found any more.
VERSION = 1
DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Slice:
    """A record as networks take it, but in its own grey values.

    Attributes:
        pixels: float32 [size, size] in the file's units.
        mask: int64 [size, size].
        shape: (height, width) of the file's picture.
    """

    pixels: Pixels
    mask: Mask
    shape: tuple[int, int]


def resize(values: np.ndarray[Any, Any], size: int, method: Image.Resampling) -> np.ndarray[Any, Any]:
    """[H, W] of float32 or int32 to [size, size]."""
    return np.asarray(Image.fromarray(values).resize((size, size), method))


def decode_resized(source: Source, record: Record, size: int) -> Slice:
    """Decode a record and resize it: pixels bilinear, mask nearest neighbour.

    Raises:
        DataError: it cannot be read.
    """
    pixels, mask = source.pixels(record), source.mask(record)
    return Slice(
        resize(pixels, size, Image.Resampling.BILINEAR).copy(),
        resize(mask.astype(np.int32), size, Image.Resampling.NEAREST).astype(np.int64),
        (pixels.shape[0], pixels.shape[1]),
    )


@lru_cache(maxsize=4096)
def _file_digest(path: Path, _size: int, _changed: int) -> bytes:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.digest()


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file's content, or of the names and contents of a folder's files.

    Raises:
        DataError: nothing there, or not readable.
    """
    try:
        if path.is_dir():
            total = hashlib.sha256()
            for file in sorted(path.iterdir()):
                if file.is_file():
                    total.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + content_digest(file))
            return total.digest()
        stat = path.stat()
        return _file_digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"{path}: expected a readable file, got {error.strerror or error}; check the path"
        ) from None


@dataclass
class SliceCache:
    """A folder of slices. Several processes may use it at once.

    An entry is named by what it was made from: the contents of its files, how they are decoded, and the size. So a file
    that changes, however little, makes a new entry, and a set that moves keeps its entries. Entries are written under
    another name and renamed; a damaged one counts as absent. Nothing is ever deleted: delete the folder to begin anew.

    Attributes:
        folder: made when it is missing, readable by its owner alone. Where it cannot be written, what is there is still
            read, and one warning is given.
        hits: slices that were found.
        misses: slices that were decoded.
    """

    folder: Path
    hits: int = 0
    misses: int = 0
    _writable: bool = field(default=True, repr=False)

    def get(self, source: Source, record: Record, size: int) -> Slice:
        """As `decode_resized`, from the folder where it is there, else decoded and kept.

        Raises:
            DataError: the record's files are gone, or have to be decoded and cannot be.
        """
        path = self._path(source, record, size)
        kept = _read(path)
        if kept is not None:
            self.hits += 1
            return kept
        self.misses += 1
        made = decode_resized(source, record, size)
        if self._writable:
            self._keep(path, made)
        return made

    def _path(self, source: Source, record: Record, size: int) -> Path:
        how = repr((VERSION, size, source.name, source.class_names, record.index))
        total = hashlib.sha256(how.encode())
        for file in (record.image, record.mask):
            total.update(content_digest(file))
        name = total.hexdigest()
        # Two levels, because folders of a million files are slow.
        return self.folder / name[:2] / f"{name[2:]}.slice"

    def _keep(self, path: Path, made: Slice) -> None:
        buffer = io.BytesIO()
        for values in (made.pixels, made.mask.astype(np.uint16), np.asarray(made.shape)):
            np.save(buffer, values, allow_pickle=False)
        content = buffer.getvalue()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(content).digest() + content)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._writable = False
            warnings.warn(
                f"{self.folder}: expected a folder that can be written, got {error.strerror or error}; slices are"
                " decoded anew every time - make it writable, free space, or choose another folder by reading.cache",
                stacklevel=3,
            )


def _read(path: Path) -> Slice | None:
    """The entry, or None when it is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        return None
    buffer = io.BytesIO(content[DIGEST:])
    pixels, mask, shape = (np.load(buffer, allow_pickle=False) for _ in range(3))
    return Slice(pixels, mask.astype(np.int64), (int(shape[0]), int(shape[1])))
