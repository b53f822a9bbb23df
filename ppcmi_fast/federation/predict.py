"""Segment images with a finished run: the site's codec and key, the server's mapper, the wire between them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppcmi_fast.data.arrays import to_unit_range
from ppcmi_fast.data.cache import resize
from ppcmi_fast.data.readers.dicom import Turn, is_dicom, read_pixels
from ppcmi_fast.data.readers.dicom_seg import one_series, write_segmentation
from ppcmi_fast.data.readers.pictures import grey_values
from ppcmi_fast.data.readers.volumes import read_volume, write_labels
from ppcmi_fast.data.records import Pixels
from ppcmi_fast.errors import ConfigError, DataError, RunError
from ppcmi_fast.federation.build import make_mapper, make_site
from ppcmi_fast.federation.calibration import load_threshold
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.evaluate import answers_through_wire, class_maps
from ppcmi_fast.federation.runfolder import RunFolder, has_results, load_module, read_json
from ppcmi_fast.federation.server import Server
from ppcmi_fast.federation.tuning import encoder_of
from ppcmi_fast.federation.views import VIEWS

VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")

ClassMap = np.ndarray[Any, np.dtype[np.uint8]]


def ending_of(path: Path) -> str:
    """The suffix, ".nii.gz" as a whole, in lower case."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def kind_of(image: Path) -> str:
    """What it is: "dicom" for a folder of slices or a file of one, "volume" or "picture"."""
    if image.is_dir() or ending_of(image) == ".dcm" or is_dicom(image):
        return "dicom"
    return "volume" if ending_of(image) in VOLUMES else "picture"


def check_pair(image: Path, out: Path) -> None:
    """Raise DataError unless the mask's format fits the image's: geometry needs a format that holds it."""
    formats = {"dicom": (".dcm",), "volume": VOLUMES, "picture": (".png",)}[kind_of(image)]
    if ending_of(out) not in formats:
        raise DataError(
            f"--out: expected a name ending in {' or '.join(formats)} for {image.name}, got {out}; DICOM gives DICOM"
            " SEG, a volume keeps its geometry, and a picture gives 8-bit PNG"
        )


class Segmenter:
    """A run's parts, ready to segment for one site.

    Args:
        run: its folder.
        site: who asks.
        views: in which it asks about an image; None takes as many as the run's settings say, for which the site's
            threshold was chosen.

    Raises:
        RunError: `run` is no finished run, or has no such site.
        ConfigError: more views than there are, or none.
    """

    def __init__(self, run: Path, site: str, views: int | None = None) -> None:
        if views is not None and not 1 <= views <= len(VIEWS):
            raise ConfigError(
                f"views: expected 1 to {len(VIEWS)}, got {views}; leave it out to ask as the run is set"
            )
        if not (run / "config.toml").is_file() or not has_results(run):
            raise RunError(f"{run}: expected the folder of a finished run; make one with `ppcmi federate`")
        folder, self.config = RunFolder(run), RunConfig.load(run / "config.toml")
        self._views = self.config.query_views if views is None else views
        metrics = read_json(run / "metrics.json")
        dataset = metrics["dataset"]
        late = metrics["late_sites"]["dice"]["site"] if "late_sites" in metrics else {}
        sites = [*dataset["sites"], *late]
        if site not in sites:
            raise RunError(f"--site: expected one of {', '.join(sites)}, got {site!r}")
        self.class_names = dataset.get("class_names") or [
            f"class {number}" for number in range(1, dataset["classes"])
        ]
        learner = make_learner(self.config, dataset["classes"], self.config.seed)
        load_module(run / "sites" / site / "codec.safetensors", learner)
        tuned = run / "sites" / site / "encoder_tuned.safetensors"
        if tuned.is_file():
            load_module(tuned, encoder_of(learner))
        mapper = make_mapper(self.config, learner, len(sites))
        # A site that joined late got the tuned encoder within its codec.
        weights = "mapper_tuned" if self.config.tuning.rounds else "mapper"
        load_module(folder.server / f"{weights}.safetensors", mapper)
        server = Server(self.config.federation_id, self.config.epoch, self.config.trust)
        self._channel = Channel(server)
        # The server numbers sites in the order in which they register; adapters depend on that number.
        for name in sites:
            member = make_site(self.config, folder, name, learner)
            self._channel.send(member.register(self.config.size, self.config.size))
        server.mapper = mapper
        self._site = make_site(self.config, folder, site, learner)
        load_threshold(folder, self._site)

    def class_map(self, pixels: Tensor, shape: tuple[int, int]) -> ClassMap:
        """Classes uint8 of `shape`, from an image [1, size, size] in 0..1."""
        (scores,) = answers_through_wire(self._site, self._channel, pixels.unsqueeze(0), self._views)
        scores = torch.nn.functional.interpolate(scores, size=shape, mode="bilinear", align_corners=False)
        return np.asarray(class_maps(scores, self._site.threshold)[0].numpy(), dtype=np.uint8)

    def segment(self, values: Iterable[Pixels]) -> ClassMap:
        """Classes [slices, H, W] of slices in the units of their file, scaled as in training."""
        maps = []
        for pixels in values:
            resized = resize(pixels, self.config.size, Image.Resampling.BILINEAR)
            image = to_unit_range(resized, self.config.reading.window)
            maps.append(self.class_map(image, (pixels.shape[0], pixels.shape[1])))
        return np.stack(maps)


def segment_image(run: Path, site: str, image: Path, out: Path, views: int | None = None) -> dict[int, int]:
    """Write the class map of one picture, volume or DICOM series at its own size.

    Args:
        run: folder of a finished run.
        site: the site that asks, as in the run's data.
        image: 8-bit grey picture; a volume (NIfTI, MHA, NRRD) that is cut into slices as in training; a folder with one
            DICOM series, or one of its slices.
        out: PNG for a picture; NIfTI, MHA or NRRD for a volume, in its geometry (values are classes); DICOM SEG, with a
            segment a class, for DICOM.
        views: as `Segmenter` takes them.

    Returns:
        Pixels per class, by class number.

    Raises:
        RunError: `run` is no finished run, or has no such site.
        ConfigError: more views than there are, or none.
        DataError: the image cannot be read, or `out` is of a format that does not fit it.
    """
    check_pair(image, out)
    segmenter, kind = Segmenter(run, site, views), kind_of(image)
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "dicom":
        headers = one_series(image)
        turns = [Turn.of(header.orientation) for header in headers]
        classes = segmenter.segment(
            turn.apply(read_pixels(h.path)) for turn, h in zip(turns, headers, strict=True)
        )
        stored = np.stack([turn.undo(found) for turn, found in zip(turns, classes, strict=True)])
        write_segmentation(headers, stored, segmenter.class_names, out)
    elif kind == "volume":
        classes = segmenter.segment(read_volume(image).values)
        write_labels(classes, image, out)
    else:
        classes = segmenter.segment([grey_values(image)])
        Image.fromarray(classes[0]).save(out, format="PNG")
    values, counts = np.unique(classes, return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}
