"""Data sets as they are downloaded: `open_dataset` finds the layout, checks every file and gives records."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

from ppcmi_fast.data.readers.base import Reader, ReadOptions, Scan, finish
from ppcmi_fast.data.readers.dicom_seg import DicomSegReader
from ppcmi_fast.data.readers.folder import FolderReader
from ppcmi_fast.data.readers.fumpe import FumpeReader
from ppcmi_fast.data.readers.msd import AcdcReader, MsdReader
from ppcmi_fast.data.readers.nerve import NerveReader
from ppcmi_fast.data.readers.psfhs import JnuIfmReader, PsfhsReader
from ppcmi_fast.data.readers.tables import with_sites
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.errors import DataError

__all__ = ["LAYOUTS", "ReadOptions", "open_dataset"]

_READERS: dict[str, type[Reader]] = {
    "folder": FolderReader,
    "psfhs": PsfhsReader,
    "jnu-ifm": JnuIfmReader,
    "nerve": NerveReader,
    "fumpe": FumpeReader,
    "msd": MsdReader,
    "acdc": AcdcReader,
    "dicom": DicomSegReader,
}
LAYOUTS = tuple(_READERS)


def _detect(root: Path) -> str:
    if FolderReader().detect(root):
        return "folder"
    # DICOM has no layout, only files: the others are looked for first, because that reads every header.
    found = [name for name, reader in _READERS.items() if name != "dicom" and reader().detect(root)]
    if not found and DicomSegReader().detect(root):
        return "dicom"
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{root}: expected one known layout, got the marks of {', '.join(found)}; name the right one by layout"
        )
    if not any(root.iterdir()):
        raise DataError(f"{root}: expected a data set, found an empty folder; check the path")
    titles = "; ".join(f"{name}: {reader.title}" for name, reader in _READERS.items())
    raise DataError(f"{root}: expected a known layout ({titles}), found none of them; write a manifest.csv")


def open_dataset(root: Path, layout: str = "auto", options: ReadOptions | None = None) -> Dataset:
    """Read and check a data set in the layout in which it is published.

    Args:
        root: its folder, unpacked; `sites.csv` in it divides subjects among sites.
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
    reader, scan = _READERS[name](), Scan()
    for case in reader.cases(root):
        scan.add(case, options)
    dataset = finish(reader, root, scan, options)
    return dataset if name == "folder" else replace(dataset, records=with_sites(dataset.records, root))
