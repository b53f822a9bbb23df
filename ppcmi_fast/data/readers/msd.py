"""Medical Segmentation Decathlon folders, Task02 Heart among them (Antonelli et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppcmi_fast.data.readers.base import Case, whole
from ppcmi_fast.data.readers.volumes import read_volume, slice_of, volume_case
from ppcmi_fast.data.records import Mask, Pixels, Record
from ppcmi_fast.errors import DataError

ENDINGS = (".nii.gz", ".nii")


def _stem(path: Path) -> str:
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.stem


class MsdReader:
    """`imagesTr/*.nii.gz`, `labelsTr/` of the same names, `dataset.json`."""

    name = "msd"
    title = "a Decathlon folder with imagesTr, labelsTr and dataset.json"
    class_names: tuple[str, ...] = ()
    modality = "general"
    groups_by_similarity = False

    def detect(self, root: Path) -> bool:
        """Whether both folders are there."""
        return (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir()

    def _description(self, root: Path) -> dict[str, Any]:
        path = root / "dataset.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path}: expected JSON, got {error}; download it again") from None
        return found if isinstance(found, dict) else {}

    def cases(self, root: Path) -> Iterator[Case]:
        """A volume a subject; classes are named by `labels` of dataset.json."""
        description = self._description(root)
        self.modality = _modality(description.get("modality"))
        labels = description.get("labels", {})
        if isinstance(labels, dict) and labels:
            # {"0": "background", "1": "left atrium"}
            numbered = {int(k): str(v) for k, v in labels.items() if str(k).isdigit()}
            self.class_names = tuple(numbered[k] for k in sorted(numbered) if k > 0)
        images, masks = _by_stem(root / "imagesTr"), _by_stem(root / "labelsTr")
        for stem in sorted(images.keys() | masks.keys()):
            image = images.get(stem, root / "imagesTr" / f"{stem}.nii.gz")
            mask = masks.get(stem, root / "labelsTr" / f"{stem}.nii.gz")
            yield volume_case(image, mask, Record(image, mask, stem, "site"))

    def pixels(self, record: Record) -> Pixels:
        """A slice."""
        return slice_of(record.image, record)

    def mask(self, record: Record) -> Mask:
        """Its classes."""
        return whole(slice_of(record.mask, record), record.mask)


def _modality(stated: object) -> str:
    """From {"0": "MRI"} of dataset.json; sets of several sequences state them all, and are of one kind."""
    names = " ".join(map(str, stated.values())).upper() if isinstance(stated, dict) else ""
    if "MR" in names or "FLAIR" in names or "T1" in names or "T2" in names:
        return "mri"
    return "ct" if "CT" in names else "general"


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if _usable(path)):
        other = found.setdefault(_stem(path), path)
        if other != path:
            raise DataError(
                f"{folder}: expected one file of each name, got {other.name} and {path.name}; remove one of them"
            )
    return found


def _usable(path: Path) -> bool:
    # The archives hold macOS's "._la_003.nii.gz" beside every file.
    return path.name.endswith(ENDINGS) and not path.name.startswith("._")


class AcdcReader:
    """`patientNNN/patientNNN_frameFalse.nii.gz`, `..._gt.nii.gz`, `Info.cfg` (Bernard et al. 2018)."""

    name = "acdc"
    title = "ACDC folders patientNNN with frames, _gt files and Info.cfg"
    class_names: tuple[str, ...] = ("right ventricle", "myocardium", "left ventricle")
    modality = "mri"
    groups_by_similarity = False

    def detect(self, root: Path) -> bool:
        """Whether a patient's folder is there."""
        return any(path.is_dir() for path in root.glob("patient[0-9]*"))

    def _group(self, folder: Path) -> str:
        path = folder / "Info.cfg"
        if not path.is_file():
            return ""
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() == "group":
                return value.strip()
        return ""

    def cases(self, root: Path) -> Iterator[Case]:
        """A frame a volume; the patient's group is kept."""
        for folder in sorted(path for path in root.glob("patient[0-9]*") if path.is_dir()):
            group = self._group(folder)
            frames = {_stem(p).removesuffix("_gt") for p in folder.glob("*_frame*.nii*") if _usable(p)}
            for frame in sorted(frames):
                image, mask = _either(folder, frame), _either(folder, f"{frame}_gt")
                yield volume_case(image, mask, Record(image, mask, folder.name, "site", group=group))

    def pixels(self, record: Record) -> Pixels:
        """A slice."""
        return slice_of(record.image, record)

    def mask(self, record: Record) -> Mask:
        """Its classes: 1 right ventricle, 2 myocardium, 3 left ventricle."""
        return whole(read_volume(record.mask).values[record.index or 0], record.mask)


def _either(folder: Path, stem: str) -> Path:
    for ending in ENDINGS:
        if (folder / f"{stem}{ending}").is_file():
            return folder / f"{stem}{ending}"
    return folder / f"{stem}{ENDINGS[0]}"
