"""PPCMI-SF as published, its predecessor and its ablations, from the paper's description (arXiv 2603.05541).

Every site trains an autoencoder of its images and one of its masks; it sends the server latents under its own key,
z' = Q z + b a scale; the server holds the keys' inverses, pools the plain latents, trains the mapping blocks on squared
error, maps, and answers under the site's key. What the paper leaves open is said in docs/published.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppcmi_fast import ops
from ppcmi_fast.baselines.base import Outcome, Progress, SiteData, Workbench, count_parameters
from ppcmi_fast.baselines.published_networks import Autoencoder, Latents, Mapping
from ppcmi_fast.codec.mask import one_hot_foreground
from ppcmi_fast.data.augment import augment, augmented_batch
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.keys import SiteKey
from ppcmi_fast.training import Fit, FitSettings, FitState, autocast, device_of, step_generator

AUTOENCODER_EPOCHS, MAPPER_EPOCHS = 100, 150
LEARNING_RATE = 1e-3
VIEWS = 4  # of each training image at the server, the first as it is, the others augmented
FLOAT_BYTES = 4
COARSEST = 32
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Profile:
    """What is left out of the published system; `name` is the method's."""

    name: str
    skips: bool = True
    keys: bool = True
    pyramid: bool = True


def bce_dice(logits: Tensor, target: Tensor) -> Tensor:
    """0.5 binary cross-entropy + 0.5 soft Dice loss of [N, C, H, W], the paper's loss of both autoencoders."""
    probability = logits.float().sigmoid()
    both = (probability * target).sum((2, 3))
    dice = 1 - (2 * both + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    return 0.5 * F.binary_cross_entropy_with_logits(logits.float(), target) + 0.5 * dice.mean()


@dataclass
class Member:
    """A site with its two autoencoders and its key material by role and stride."""

    name: str
    data: SiteData
    image: Autoencoder
    mask: Autoencoder
    params: dict[tuple[str, int], ops.KltParams]

    @torch.no_grad()
    def protect(self, role: str, latents: Latents) -> Latents:
        """What travels: z' = Q z + b."""
        if not self.params:
            return latents
        return {s: ops.klt(z.contiguous(), self.params[role, s], normalize=False) for s, z in latents.items()}

    @torch.no_grad()
    def recover(self, role: str, latents: Latents) -> Latents:
        """Undo `protect`, as the site and the paper's server can."""
        if not self.params:
            return latents
        return {
            s: ops.klt(z.contiguous(), self.params[role, s], normalize=False, inverse=True)
            for s, z in latents.items()
        }


def _member(bench: Workbench, profile: Profile, name: str) -> Member:
    # The same first weights at every site: the paper does not say, and latents of one origin are easier to map.
    torch.manual_seed(bench.seed)
    width = bench.published_width
    image = Autoencoder(1, width, skips=profile.skips).to(bench.device)
    mask = Autoencoder(bench.classes - 1, width, skips=profile.skips).to(bench.device)
    params = {}
    if profile.keys:
        key = SiteKey.generate("published")
        for role, net in (("image", image), ("mask", mask)):
            for scale, dim in net.latent_dims.items():
                params[role, scale] = key.klt_params(role, scale, dim, "haar", offset_scale=1.0)
    return Member(name, bench.sites[name], image, mask, params)


def _picture(role: str, images: Tensor, masks: Tensor, classes: int) -> Tensor:
    return images.clamp(0, 1) if role == "image" else one_hot_foreground(masks, classes)


def _train_autoencoder(
    bench: Workbench, profile: Profile, member: Member, role: str, steps: int
) -> dict[str, Any]:
    net = member.image if role == "image" else member.mask
    train, val = member.data.train, member.data.val

    def loss(generator: torch.Generator) -> Tensor:
        images, masks = augmented_batch(train, bench.batch, generator)
        target = _picture(role, images, masks, bench.classes).to(bench.device)
        with autocast(bench.device):
            logits = net(target)
        return bce_dice(logits, target)

    def validate() -> float:
        target = _picture(role, val.images, val.masks, bench.classes).to(bench.device)
        return -float(bce_dice(net(target), target))

    def fit(checkpoint: Path, progress: Progress) -> FitState:
        settings = _settings(bench, steps)
        return Fit(net, loss, settings, checkpoint=checkpoint, validate=validate, progress=progress).run()

    return bench.train(f"{profile.name}.{member.name}.{role}", net, steps, fit)


def _settings(bench: Workbench, steps: int) -> FitSettings:
    """Adam at a constant rate, as published."""
    every = bench.settings(steps).validate_every
    return FitSettings(steps, LEARNING_RATE, 0.0, every, seed=bench.seed, constant=True)


@torch.no_grad()
def _upload(bench: Workbench, member: Member, number: int) -> tuple[Latents, Latents]:
    """Protected latents of all views of a site's training images, and of their masks."""
    images, masks = [], []
    train = member.data.train
    for view in range(VIEWS):
        generator = step_generator(bench.seed * 4001 + number, -view)
        some = (train.images, train.masks)
        if view:
            some = augment(train.images, train.masks, generator, train.modality)
        pictures, truth = some[0].clamp(0, 1), one_hot_foreground(some[1], bench.classes)
        images.append(member.protect("image", _moved(member.image.encode(pictures.to(bench.device)), CPU)))
        masks.append(member.protect("mask", _moved(member.mask.encode(truth.to(bench.device)), CPU)))
    return _joined(images), _joined(masks)


def _joined(parts: list[Latents]) -> Latents:
    return {scale: torch.cat([part[scale] for part in parts]) for scale in parts[0]}


def _moved(latents: Latents, device: torch.device) -> Latents:
    return {scale: z.to(device) for scale, z in latents.items()}


def _values(latents: Latents) -> int:
    return sum(z.numel() for z in latents.values())


def _answers(member: Member, mapping: Mapping, images: Tensor) -> Tensor:
    """Class maps int64 [N, H, W] of a site's images, all the way and back."""
    maps, device = [], device_of(mapping)
    with torch.no_grad():
        for some in images.split(32):
            query = member.protect("image", _moved(member.image.encode(some.to(device)), CPU))
            found = mapping(_moved(member.recover("image", query), device))
            reply = member.protect("mask", _moved(found, CPU))
            probability = member.mask.decode(_moved(member.recover("mask", reply), device)).sigmoid()
            # Ours, for more than one class: the likeliest, or background where none reaches one half.
            best = probability.max(1)
            maps.append(torch.where(best.values > 0.5, best.indices + 1, 0).cpu())
    return torch.cat(maps)


def _check(bench: Workbench) -> None:
    size = next(iter(bench.sites.values())).train.images.shape[-1]
    if size % COARSEST:
        raise ConfigError(f"size: expected a multiple of {COARSEST} for the published profile, got {size}")


def run_profile(bench: Workbench, profile: Profile) -> Outcome:
    """Train and answer.

    Raises:
        ConfigError: a size that the networks do not take.
    """
    _check(bench)
    members = [_member(bench, profile, name) for name in bench.sites]
    epochs = 2 * AUTOENCODER_EPOCHS + MAPPER_EPOCHS
    steps = max(1, bench.images * AUTOENCODER_EPOCHS // epochs // len(members) // bench.batch)
    facts = [
        _train_autoencoder(bench, profile, member, role, steps)
        for member in members
        for role in ("image", "mask")
    ]
    uploads = [_upload(bench, member, number) for number, member in enumerate(members)]
    sent = FLOAT_BYTES * sum(_values(image) + _values(mask) for image, mask in uploads)
    inputs = _joined([m.recover("image", image) for m, (image, _) in zip(members, uploads, strict=True)])
    targets = _joined([m.recover("mask", mask) for m, (_, mask) in zip(members, uploads, strict=True)])

    torch.manual_seed(bench.seed)
    first = members[0]
    mapping = Mapping(
        first.image.latent_dims, first.mask.latent_dims, bench.published_width, pyramid=profile.pyramid
    ).to(bench.device)
    mapper_steps = max(1, bench.images * MAPPER_EPOCHS // epochs // bench.batch)
    count = len(next(iter(inputs.values())))

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(count, (bench.batch,), generator=generator)
        some, wanted = (
            _moved({s: z[index] for s, z in latents.items()}, bench.device) for latents in (inputs, targets)
        )
        with autocast(bench.device):
            guess = mapping(some)
        return sum((F.mse_loss(guess[s].float(), z) for s, z in wanted.items()), torch.zeros(()))

    def validate() -> float:
        by_name = {member.name: member for member in members}
        return bench.validation_dice(lambda name, images: _answers(by_name[name], mapping, images))

    def fit(checkpoint: Path, progress: Progress) -> FitState:
        settings = _settings(bench, mapper_steps)
        return Fit(mapping, loss, settings, checkpoint=checkpoint, validate=validate, progress=progress).run()

    facts.append(bench.train(f"{profile.name}.mapper", mapping, mapper_steps, fit))
    maps = {member.name: _answers(member, mapping, member.data.test.images) for member in members}
    return Outcome(
        maps,
        bench.batch * sum(fact["steps"] for fact in facts),
        sum(fact["seconds"] for fact in facts),
        count_parameters(first.image, first.mask, mapping),
        {"latents": sent},
        facts[-1]["best"],
        LEARNING_RATE,
    )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("published"),
        Profile("privacy_sf", skips=False, keys=False),
        Profile("published_no_klt", keys=False),
        Profile("published_no_pyramid", pyramid=False),
        Profile("published_no_skips", skips=False),
    )
}


def method(name: str) -> Callable[[Workbench], Outcome]:
    """The method of a profile's name."""
    return lambda bench: run_profile(bench, PROFILES[name])


def measure_published(size: int = 256, width: float = 1.0, repeats: int = 5) -> dict[str, Any]:
    """What the published networks cost here, with random weights: sizes do not depend on them.

    Returns:
        `latency_ms` (medians of encode, map, decode and total of one image), `parameters`, and `payload_bytes` up and
        down.
    """
    torch.manual_seed(0)
    image, mask = Autoencoder(1, width).eval(), Autoencoder(1, width).eval()
    mapping = Mapping(image.latent_dims, mask.latent_dims, width).eval()
    x = torch.rand(1, 1, size, size)
    times: dict[str, list[float]] = {"encode": [], "map": [], "decode": []}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = call()
        times[name].append((time.perf_counter() - start) * 1e3)
        return found

    with torch.no_grad():
        for _ in range(repeats + 1):
            latents = timed("encode", partial(image.encode, x))
            found = timed("map", partial(mapping, latents))
            timed("decode", partial(mask.decode, found))
    medians = {name: round(median(values[1:]), 2) for name, values in times.items()}
    nets: dict[str, nn.Module] = {"image_autoencoder": image, "mask_autoencoder": mask, "mapping": mapping}
    return {
        "size": size,
        "width": width,
        "threads": torch.get_num_threads(),
        "latency_ms": {**medians, "total": round(sum(medians.values()), 2)},
        "parameters": {name: count_parameters(net) for name, net in nets.items()},
        "payload_bytes": {"up": FLOAT_BYTES * _values(latents), "down": FLOAT_BYTES * _values(found)},
    }
