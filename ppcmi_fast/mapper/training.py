"""How the server trains the mapper: squared error between protected mask latents, nothing else to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ppcmi_fast.mapper.network import LatentMapper
from ppcmi_fast.training import Fit, FitSettings, FitState, autocast, device_of

Latents = dict[int, Tensor]


class LatentSet(Protocol):
    """What the server trains on: image and mask latents in its own frame."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(self, index: Tensor) -> tuple[Latents, Latents, Tensor]:
        """Image latents, mask latents and sites (int64 [N]) of the samples `index` (int64 [N])."""


def position_weights(z: Tensor, balance: float) -> Tensor:
    """How much each position counts: the more, the further its mask code is from the mean of all.

    Most positions are background and have one code, so this is what class weights are to a cross-entropy, for a server
    that knows no class. Distances are those of the sites' codes, whatever the common frame; in trust mode "sites" there
    is none, and weights are nearer to 1.

    Args:
        z: [N, C, H, W] mask latents.
        balance: 0 counts all alike.

    Returns:
        [N, 1, H, W] of mean 1.
    """
    distance = (z - z.mean((0, 2, 3), keepdim=True)).square().mean(1, keepdim=True)
    weight = 1 + balance * distance / distance.mean().clamp_min(1e-12)
    return weight / weight.mean()


def squared_error(guess: Latents, target: Latents, balance: float = 0.0) -> Tensor:
    """Mean squared error, summed over scales (paper section III), positions weighted by `position_weights`."""
    return sum(
        (
            (position_weights(z, balance) * (guess[scale].float() - z).square()).mean()
            if balance
            else F.mse_loss(guess[scale].float(), z)
            for scale, z in target.items()
        ),
        torch.zeros(()),
    )


def map_latents(mapper: LatentMapper, latents: Latents, site: Tensor) -> Latents:
    """Apply the mapper where it lies, to latents from the CPU and back; differentiable."""
    device = device_of(mapper)
    moved = {s: z.contiguous(memory_format=torch.channels_last).to(device) for s, z in latents.items()}
    return {scale: z.cpu() for scale, z in mapper(moved, site.to(device)).items()}


def mean_squared_error(
    mapper: LatentMapper, latents: LatentSet, batch: int = 64, balance: float = 0.0
) -> float:
    """Mean of `squared_error` over a whole set."""
    total = 0.0
    for index in torch.arange(len(latents)).split(batch):
        inputs, targets, site = latents.batch(index)
        total += squared_error(map_latents(mapper, inputs, site), targets, balance).item() * len(index)
    return total / len(latents)


def train_mapper(
    mapper: LatentMapper,
    train: LatentSet,
    val: LatentSet,
    settings: FitSettings,
    batch: int,
    *,
    balance: float = 0.0,
    checkpoint: Path | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    start_counts: bool = False,
) -> FitState:
    """Train in place; keeps the weights with the least squared error on `val` (the history's "val" is its negative).

    `start_counts`: those it begins with among them.
    """
    mapper.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(generator: torch.Generator) -> Tensor:
        inputs, targets, site = train.batch(torch.randint(len(train), (batch,), generator=generator))
        with autocast(device_of(mapper)):
            guess = map_latents(mapper, inputs, site)
        return squared_error(guess, targets, balance)

    validate = (lambda: -mean_squared_error(mapper, val, balance=balance)) if len(val) else None
    return Fit(
        mapper,
        loss,
        settings,
        checkpoint=checkpoint,
        validate=validate,
        progress=progress,
        start_counts=start_counts,
    ).run()
