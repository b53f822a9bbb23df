"""Does a mapper learn more that must answer on the coarser grids, too?

    python experiments/lab/coarse_supervision.py runs/experiments/comparison_sunnybrook/ours/seed-0

It takes the trained codec of a finished run and trains the mapper from nothing, once as the server does and once with
mask codes of the coarser image scales as further targets (the paper has a mapping a scale), under the same batches and
steps. Latents are the plain ones in float32: an orthogonal frame changes neither the squared error nor what there is to
learn, and bits would be the same for both.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from finished import FinishedRun, keep
from torch import Tensor

from ppcmi_fast.codec import LinearMaskCodec
from ppcmi_fast.data.augment import augment
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.codecs import Participant
from ppcmi_fast.mapper import LatentMapper, train_mapper
from ppcmi_fast.training import FitSettings, step_generator

STEPS, VALIDATIONS = 1500, 10
Latents = dict[int, Tensor]


@dataclass(frozen=True)
class PlainLatents:
    """See `mapper.training.LatentSet`."""

    images: Latents
    masks: Latents

    def __len__(self) -> int:
        return len(next(iter(self.images.values())))

    def batch(self, index: Tensor) -> tuple[Latents, Latents, Tensor]:
        """See `LatentSet.batch`."""
        images = {scale: z[index] for scale, z in self.images.items()}
        return images, {scale: z[index] for scale, z in self.masks.items()}, torch.zeros_like(index)


@torch.no_grad()
def encoded(participant: Participant, images: Tensor) -> Latents:
    """Plain latents of all the images."""
    parts = [participant.learner.image_codec.encode(part) for part in images.split(32)]
    return {scale: torch.cat([part[scale] for part in parts]) for scale in parts[0]}


def joined(run: FinishedRun, part: str, codecs: dict[int, LinearMaskCodec], views: int) -> PlainLatents:
    """Latents of all sites' images of a part."""
    sets = []
    for number, participant in enumerate(run.federation.participants):
        data = run.sites[participant.site.name][part]
        for view in range(views):
            images, masks = data.images, data.masks
            if view:
                generator = step_generator(run.config.seed * 1009 + number, -view)
                images, masks = augment(images, masks, generator, data.modality)
            codes = {scale: codec.encode(masks)[scale] for scale, codec in codecs.items()}
            sets.append((encoded(participant, images), codes))
    images_of, masks_of = (
        {s: torch.cat([found[k][s] for found in sets]) for s in sets[0][k]} for k in (0, 1)
    )
    return PlainLatents(images_of, masks_of)


def train(run: FinishedRun, codecs: dict[int, LinearMaskCodec], steps: int) -> LatentMapper:
    """A mapper from nothing to the codes of these codecs."""
    settings = run.config.mapper
    image_codec = run.federation.participants[0].learner.image_codec
    torch.manual_seed(run.config.seed + 1)
    mapper = LatentMapper(
        {scale: (dim, scale) for scale, dim in image_codec.latent_dims.items()},
        {scale: (codec.latent_dims[scale], scale) for scale, codec in codecs.items()},
        settings.width,
        settings.blocks,
    )
    fit = FitSettings(
        steps,
        settings.learning_rate,
        settings.weight_decay,
        validate_every=max(1, steps // VALIDATIONS),
        seed=run.config.seed,
    )
    sets = joined(run, "train", codecs, settings.views), joined(run, "val", codecs, 1)
    train_mapper(mapper, *sets, fit, settings.batch, balance=settings.balance)
    return mapper.eval()


@torch.no_grad()
def answers(run: FinishedRun, mapper: LatentMapper, codec: LinearMaskCodec, part: str) -> dict[str, Tensor]:
    """Class scores of every site's images of a part, from the code of the finest grid alone."""
    found = {}
    for participant in run.federation.participants:
        images = run.sites[participant.site.name][part].images
        scores = [
            codec.decode({codec.block: mapper(encoded(participant, chunk))[codec.block]})
            for chunk in images.split(32)
        ]
        found[participant.site.name] = torch.cat(scores)
    return found


def main(arguments: list[str] | None = None) -> Path:
    """Measure it on one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each mapper")
    options = parser.parse_args(arguments)
    run = FinishedRun.load(options.run)
    finest = run.federation.participants[0].learner.mask_codec
    if not isinstance(finest, LinearMaskCodec):
        raise ConfigError('codec.mask: expected a run with "linear", got "autoencoder"; take another run')
    coarser = {
        s: LinearMaskCodec(run.classes, s, finest.rank) for s in run.config.codec.scales if s > finest.block
    }
    if not coarser:
        raise ConfigError(f"codec.scales: expected one over {finest.block}, got none; take another run")
    base, further = "one scale", "every scale"
    scores, facts = {}, {}
    for method, codecs in ((base, {finest.block: finest}), (further, {finest.block: finest} | coarser)):
        started = time.perf_counter()
        mapper = train(run, codecs, options.steps)
        facts[method] = {"seconds": time.perf_counter() - started}
        scores[method] = answers(run, mapper, finest, "test")
        facts[method]["validation"] = run.validation(answers(run, mapper, finest, "val"))
    found = run.compared(scores, base)
    methods = {method: found[method] | facts[method] for method in found}
    return keep("coarse_supervision", options.run, run, {"steps": options.steps, "methods": methods})


if __name__ == "__main__":
    print(f"kept in {main()}")
