"""Segment images with a finished run: the site's codec and key, the server's mapper, the wire between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppcmi_fast.data.arrays import clip_to_window, load_image, rescale, resize
from ppcmi_fast.data.readers.base import read_volume, write_labels
from ppcmi_fast.errors import DataError, RunError
from ppcmi_fast.federation.build import make_mapper, make_site
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.runfolder import RunFolder, load_module, read_json
from ppcmi_fast.federation.server import Server

VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")

ClassMap = np.ndarray[Any, np.dtype[np.uint8]]


def ending_of(path: Path) -> str:
    """The suffix, ".nii.gz" as a whole, in lower case."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def check_pair(image: Path, out: Path) -> None:
    """Raise DataError unless the mask's format fits the image's: a volume's geometry needs a format that holds it."""
    given, wanted = ending_of(image), ending_of(out)
    if given in VOLUMES and wanted not in VOLUMES:
        raise DataError(
            f"--out: expected a name ending in one of {', '.join(VOLUMES)} for {image.name}, got {out}; a volume's"
            " mask keeps its geometry"
        )
    if given not in VOLUMES and wanted != ".png":
        raise DataError(f"--out: expected a name ending in .png, got {out}; masks are written as 8-bit PNG")


class Segmenter:
    """A run's parts, ready to segment for one site.

    Raises:
        RunError: `run` is no finished run, or has no such site.
    """

    def __init__(self, run: Path, site: str) -> None:
        if not (run / "config.toml").is_file() or not (run / "metrics.json").is_file():
            raise RunError(f"{run}: expected the folder of a finished run; make one with `ppcmi federate`")
        folder, self.config = RunFolder(run), RunConfig.load(run / "config.toml")
        dataset = read_json(run / "metrics.json")["dataset"]
        sites = list(dataset["sites"])
        if site not in sites:
            raise RunError(f"--site: expected one of {', '.join(sites)}, got {site!r}")
        learner = make_learner(self.config, dataset["classes"], self.config.seed)
        load_module(run / "sites" / site / "codec.safetensors", learner)
        mapper = make_mapper(self.config, learner, len(sites))
        load_module(folder.server / "mapper.safetensors", mapper)
        server = Server(self.config.federation_id, self.config.epoch, self.config.trust)
        self._channel = Channel(server)
        # The server numbers sites in the order in which they register; adapters depend on that number.
        for name in sites:
            member = make_site(self.config, folder, name, learner)
            self._channel.send(member.register(self.config.size, self.config.size))
        server.mapper = mapper
        self._site = make_site(self.config, folder, site, learner)

    def class_map(self, pixels: Tensor, shape: tuple[int, int]) -> ClassMap:
        """Classes uint8 of `shape`, from an image [1, size, size] in 0..1."""
        reply = self._channel.send(self._site.query(pixels.unsqueeze(0)))
        assert reply is not None
        scores = self._site.open_reply(reply)
        scores = torch.nn.functional.interpolate(scores, size=shape, mode="bilinear", align_corners=False)
        return np.asarray(scores.argmax(1)[0].numpy(), dtype=np.uint8)

    def picture(self, image: Path) -> ClassMap:
        """Classes of an 8-bit grey picture, at its own size."""
        pixels, shape = load_image(image, self.config.size)
        return self.class_map(pixels, shape)

    def volume(self, image: Path) -> ClassMap:
        """Classes of a volume's slices [slices, H, W], cut and scaled as in training."""
        window, slices = self.config.reading.window, []
        for values in read_volume(image).values:
            resized = resize(values, self.config.size, Image.Resampling.BILINEAR)
            pixels = rescale(resized) if window is None else clip_to_window(resized, window)
            slices.append(self.class_map(pixels.unsqueeze(0), (values.shape[0], values.shape[1])))
        return np.stack(slices)


def segment_image(run: Path, site: str, image: Path, out: Path) -> dict[int, int]:
    """Write the class map of one picture or volume at its own size.

    Args:
        run: folder of a finished run.
        site: the site that asks, as in the run's data.
        image: 8-bit grey picture, or a volume (NIfTI, MHA, NRRD) that is cut into slices as in training.
        out: PNG for a picture; for a volume NIfTI, MHA or NRRD, in the volume's geometry. Values are classes.

    Returns:
        Pixels per class, by class number.

    Raises:
        RunError: `run` is no finished run, or has no such site.
        DataError: the image cannot be read, or `out` is of a format that does not fit it.
    """
    check_pair(image, out)
    segmenter = Segmenter(run, site)
    volume = ending_of(image) in VOLUMES
    classes = segmenter.volume(image) if volume else segmenter.picture(image)
    out.parent.mkdir(parents=True, exist_ok=True)
    if volume:
        write_labels(classes, image, out)
    else:
        Image.fromarray(classes).save(out, format="PNG")
    values, counts = np.unique(classes, return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}
