"""Data sets as they are downloaded: `open_dataset` finds the layout, checks every file and gives records."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ppcmi_fast.data.folder import load_folder
from ppcmi_fast.data.readers.base import Reader, ReadOptions, Scan, finish
from ppcmi_fast.data.readers.fumpe import FumpeReader
from ppcmi_fast.data.readers.msd import AcdcReader, MsdReader
from ppcmi_fast.data.readers.nerve import NerveReader
from ppcmi_fast.data.readers.psfhs import JnuIfmReader, PsfhsReader
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.errors import DataError

__all__ = ["LAYOUTS", "ReadOptions", "open_dataset", "reader_of"]

_READERS: dict[str, type[Reader]] = {
    "psfhs": PsfhsReader,
    "jnu-ifm": JnuIfmReader,
    "nerve": NerveReader,
    "fumpe": FumpeReader,
    "msd": MsdReader,
    "acdc": AcdcReader,
}
LAYOUTS = ("folder", *_READERS)


def _detect(root: Path) -> str:
    found = ["folder"] if (root / "manifest.csv").is_file() else []
    found = found or [name for name, reader in _READERS.items() if reader().detect(root)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{root}: expected one known layout, got the marks of {', '.join(found)}; name the right one by layout"
        )
    if not any(root.iterdir()):
        raise DataError(f"{root}: expected a data set, found an empty folder; check the path")
    titles = "; ".join(f"{name}: {reader.title}" for name, reader in _READERS.items())
    raise DataError(
        f"{root}: expected manifest.csv with columns image, mask, subject, site, or a known layout ({titles}), found"
        " none of them; write a manifest"
    )


def open_dataset(root: Path, layout: str = "auto", options: ReadOptions | None = None) -> Dataset:
    """Read and check a data set in the layout in which it is published.

    Args:
        root: its folder, unpacked.
        layout: one of LAYOUTS, or "auto" to find out from the names of files.
        options: what to leave out and how much may be broken.

    Returns:
        Records with masks, and the files that could not be read.

    Raises:
        DataError: no or several known layouts, too many broken files, nothing to learn; names files and cure.
        ConfigError: a library that the layout needs is not installed.
        ValueError: an unknown layout.
    """
    root, options = Path(root), options or ReadOptions()
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"layout: expected auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
    if root.is_file():
        what = (
            "an archive; unpack it" if zipfile.is_zipfile(root) else "a file; give the folder that it lies in"
        )
        raise DataError(f"{root}: expected a folder, got {what}")
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with a data set, found none; check the path")
    name = _detect(root) if layout == "auto" else layout
    if name == "folder":
        return load_folder(root, options.classes)
    reader, scan = reader_of(name), Scan()
    for case in reader.cases(root):
        scan.add(case, options)
    return finish(reader, root, scan, options)


def reader_of(layout: str) -> Reader:
    """The reader of a layout other than "folder"."""
    return _READERS[layout]()
