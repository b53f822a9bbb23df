"""Does a mapper learn more that must answer on the coarser grids, too?

    python experiments/lab/coarse_supervision.py runs/experiments/comparison_sunnybrook/ours/seed-0

It takes the trained codec of a finished run and trains the mapper from nothing, once as the server does and once with
mask codes of the coarser image scales as further targets (the paper has a mapping a scale), under the same batches and
steps. The codec has learnt, with its head, for the finest grid alone. Latents are the plain ones in float32: an
orthogonal frame changes neither the squared error nor what there is to learn, and bits would be the same for both.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from restored import RestoredRun, command
from torch import Tensor

from ppcmi_fast.codec import LinearMaskCodec
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.build import views_of
from ppcmi_fast.federation.codecs import Participant
from ppcmi_fast.mapper import LatentMapper, train_mapper
from ppcmi_fast.training import FitSettings

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


def joined(run: RestoredRun, part: str, codecs: dict[int, LinearMaskCodec], views: int) -> PlainLatents:
    """Latents of all sites' images of a part."""
    sets = []
    for number, participant in enumerate(run.federation.participants):
        data = run.sites[participant.site.name][part]
        for images, masks in views_of(data, views, run.config.seed * 1009 + number):
            codes = {scale: codec.encode(masks)[scale] for scale, codec in codecs.items()}
            sets.append((encoded(participant, images), codes))
    images_of, masks_of = (
        {s: torch.cat([found[k][s] for found in sets]) for s in sets[0][k]} for k in (0, 1)
    )
    return PlainLatents(images_of, masks_of)


def train(run: RestoredRun, codecs: dict[int, LinearMaskCodec], steps: int) -> LatentMapper:
    """A mapper from nothing to the codes of these codecs."""
    settings = run.config.mapper
    image_codec = run.federation.participants[0].learner.image_codec
    torch.manual_seed(run.config.seed + 1)
    mapper = LatentMapper(
        {scale: (dim, scale) for scale, dim in image_codec.latent_dims.items()},
        {scale: (codec.latent_dims[scale], scale) for scale, codec in codecs.items()},
        settings.width,
        settings.blocks,
        attention=settings.attention,
    )
    fit = FitSettings(
        steps,
        settings.learning_rate,
        settings.weight_decay,
        validate_every=max(1, steps // VALIDATIONS),
        seed=run.config.seed,
    )
    # Weights are kept by the finest grid's error alone, which is what is measured.
    finest = {min(codecs): codecs[min(codecs)]}
    sets = joined(run, "train", codecs, settings.views), joined(run, "val", finest, 1)
    train_mapper(mapper, *sets, fit, settings.batch, balance=settings.balance)
    return mapper.eval()


@torch.no_grad()
def answers(run: RestoredRun, mapper: LatentMapper, codec: LinearMaskCodec, part: str) -> dict[str, Tensor]:
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


def measure(run: RestoredRun, steps: int) -> dict[str, Any]:
    """The finest grid's answers of a mapper to it alone, and of one to all."""
    config, finest = run.config, run.federation.participants[0].learner.mask_codec
    if config.codec.sharing == "local":
        raise ConfigError('codec.sharing: expected a shared codec, got "local"; take another run')
    assert isinstance(finest, LinearMaskCodec)
    scales = [scale for scale in config.codec.scales if scale > finest.block]
    if not scales:
        raise ConfigError(
            f"codec.scales: expected one over {finest.block}, got {config.codec.scales}; take another run"
        )
    coarser = {scale: LinearMaskCodec(run.classes, scale, finest.rank) for scale in scales}
    base, further = "one scale", "every scale"
    scores, facts = {}, {}
    for method, codecs in ((base, {finest.block: finest}), (further, {finest.block: finest} | coarser)):
        started = time.perf_counter()
        mapper = train(run, codecs, steps)
        seconds = time.perf_counter() - started
        scores[method] = answers(run, mapper, finest, "test")
        facts[method] = {
            "validation": run.validation(answers(run, mapper, finest, "val")),
            "seconds": seconds,
        }
    return {method: entry | facts[method] for method, entry in run.compared(scores, base).items()}


if __name__ == "__main__":
    sys.exit(command(measure, __file__, __doc__, STEPS))
