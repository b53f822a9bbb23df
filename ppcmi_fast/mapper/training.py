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


def squared_error(guess: Latents, target: Latents) -> Tensor:
    """Mean squared error, summed over scales (paper section III)."""
    return sum((F.mse_loss(guess[scale].float(), z) for scale, z in target.items()), torch.zeros(()))


def map_latents(mapper: LatentMapper, latents: Latents, site: Tensor) -> Latents:
    """Apply the mapper where it lies, to latents from the CPU and back; differentiable."""
    device = device_of(mapper)
    moved = {s: z.contiguous(memory_format=torch.channels_last).to(device) for s, z in latents.items()}
    return {scale: z.cpu() for scale, z in mapper(moved, site.to(device)).items()}


def mean_squared_error(mapper: LatentMapper, latents: LatentSet, batch: int = 64) -> float:
    """Mean of `squared_error` over a whole set."""
    total = 0.0
    for index in torch.arange(len(latents)).split(batch):
        inputs, targets, site = latents.batch(index)
        total += squared_error(map_latents(mapper, inputs, site), targets).item() * len(index)
    return total / len(latents)


def train_mapper(
    mapper: LatentMapper,
    train: LatentSet,
    val: LatentSet,
    settings: FitSettings,
    batch: int,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> FitState:
    """Train in place; keeps the weights with the least squared error on `val` (the history's "val" is its negative)."""
    mapper.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(generator: torch.Generator) -> Tensor:
        inputs, targets, site = train.batch(torch.randint(len(train), (batch,), generator=generator))
        with autocast(device_of(mapper)):
            guess = map_latents(mapper, inputs, site)
        return squared_error(guess, targets)

    validate = (lambda: -mean_squared_error(mapper, val)) if len(val) else None
    return Fit(mapper, loss, settings, checkpoint=checkpoint, validate=validate, progress=progress).run()
