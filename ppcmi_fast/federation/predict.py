"""Segment one image with a finished run: the site's codec and key, the server's mapper, the wire between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ppcmi_fast.data.arrays import load_image
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.build import make_mapper, make_site
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.runfolder import RunFolder, load_module, read_json
from ppcmi_fast.federation.server import Server


def segment_image(run: Path, site: str, image: Path, out: Path) -> dict[int, int]:
    """Write the class map of one image as an 8-bit PNG of the image's own size.

    Args:
        run: folder of a finished run.
        site: the site that asks, as in the run's manifest.
        image: 8-bit grey image file.
        out: PNG to write; values are classes.

    Returns:
        Pixels per class, by class number.

    Raises:
        RunError: `run` is no finished run, or has no such site.
        DataError: the image cannot be read.
    """
    if not (run / "config.toml").is_file() or not (run / "metrics.json").is_file():
        raise RunError(f"{run}: expected the folder of a finished run; make one with `ppcmi federate`")
    folder, config = RunFolder(run), RunConfig.load(run / "config.toml")
    dataset = read_json(run / "metrics.json")["dataset"]
    sites = list(dataset["sites"])
    if site not in sites:
        raise RunError(f"--site: expected one of {', '.join(sites)}, got {site!r}")
    pixels, original = load_image(image, config.size)
    learner = make_learner(config, dataset["classes"], config.seed)
    load_module(run / "sites" / site / "codec.safetensors", learner)
    mapper = make_mapper(config, learner, len(sites))
    load_module(folder.server / "mapper.safetensors", mapper)
    server = Server(config.federation_id, config.epoch, config.trust)
    channel = Channel(server)
    # The server numbers sites in the order in which they register; adapters depend on that number.
    for name in sites:
        member = make_site(config, folder, name, learner)
        channel.send(member.register(config.size, config.size))
    server.mapper = mapper
    asking = make_site(config, folder, site, learner)
    reply = channel.send(asking.query(pixels.unsqueeze(0)))
    assert reply is not None
    scores = asking.open_reply(reply)
    scores = torch.nn.functional.interpolate(scores, size=original, mode="bilinear", align_corners=False)
    classes = scores.argmax(1)[0].numpy().astype(np.uint8)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(classes).save(out, format="PNG")
    values, counts = np.unique(classes, return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}
