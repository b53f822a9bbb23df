"""The networks that the federation is judged against, pooled or per site, and how all baselines train theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ppcmi_fast.baselines.base import Outcome, Progress, SiteData, Workbench, count_parameters
from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.augment import augmented_batch
from ppcmi_fast.metrics import dice_scores
from ppcmi_fast.training import Fit, FitSettings, FitState, autocast, device_of


def predict(net: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    """Class maps int64 [N, H, W] of images [N, 1, H, W]."""
    device = device_of(net)
    with torch.no_grad():
        return torch.cat([net(chunk.to(device)).argmax(1).cpu() for chunk in images.split(batch)])


def train_unet(
    net: nn.Module,
    train: Arrays,
    validate: Callable[[], float],
    settings: FitSettings,
    batch: int,
    checkpoint: Path,
    progress: Progress,
) -> FitState:
    """Train on one set of images with Dice + cross-entropy and the federation's own augmentation."""
    criterion = make_criterion()

    def loss(generator: torch.Generator) -> Tensor:
        return batch_loss(net, train, batch, criterion, generator)

    fit = Fit(net, loss, settings, checkpoint=checkpoint, validate=validate, progress=progress)
    return fit.run()


def batch_loss(
    net: nn.Module, data: Arrays, batch: int, criterion: nn.Module, generator: torch.Generator
) -> Tensor:
    """Loss of one augmented batch drawn from a site's images."""
    images, masks = augmented_batch(data, batch, generator)
    device = device_of(net)
    with autocast(device):
        logits = net(images.contiguous(memory_format=torch.channels_last).to(device))
    value: Tensor = criterion(logits.float(), masks.unsqueeze(1).to(device))
    return value


def make_criterion() -> nn.Module:
    """Dice + cross-entropy of logits [N, classes, H, W] and class maps [N, 1, H, W], the loss of every U-Net."""
    from monai.losses import DiceCELoss

    criterion: nn.Module = DiceCELoss(to_onehot_y=True, softmax=True)
    return criterion


def pooled(bench: Workbench) -> Outcome:
    """One U-Net on the images of all sites in one place: what no federation can have."""
    net = bench.network()
    steps = max(1, bench.images // bench.batch)
    train = Arrays.concatenate([data.train for data in bench.sites.values()])

    def validate() -> float:
        return bench.validation_dice(lambda _, images: predict(net, images))

    def fit(checkpoint: Path, progress: Progress) -> FitState:
        return train_unet(net, train, validate, bench.settings(steps), bench.batch, checkpoint, progress)

    facts = bench.train("unet_centralised", net, steps, fit)
    maps = {name: predict(net, data.test.images) for name, data in bench.sites.items()}
    seen = facts["steps"] * bench.batch
    return Outcome(maps, seen, facts["seconds"], count_parameters(net), validation=facts["best"])


def local(bench: Workbench) -> Outcome:
    """A U-Net a site on its own images: what each has without a federation."""
    maps: dict[str, Tensor] = {}
    seen, seconds, parameters, best = 0, 0.0, 0, 0.0
    steps = max(1, bench.images // len(bench.sites) // bench.batch)
    for name, data in bench.sites.items():
        net = bench.network()

        def validate(net: nn.Module = net, data: SiteData = data) -> float:
            return float(dice_scores(predict(net, data.val.images), data.val.masks, bench.classes).mean())

        def fit(
            checkpoint: Path,
            progress: Progress,
            net: nn.Module = net,
            data: SiteData = data,
            validate: Callable[[], float] = validate,
        ) -> FitState:
            settings = bench.settings(steps)
            return train_unet(net, data.train, validate, settings, bench.batch, checkpoint, progress)

        facts = bench.train(f"unet_local.{name}", net, steps, fit)
        maps[name] = predict(net, data.test.images)
        seen, seconds = seen + facts["steps"] * bench.batch, seconds + facts["seconds"]
        parameters, best = count_parameters(net), best + facts["best"] / len(bench.sites)
    return Outcome(maps, seen, seconds, parameters, validation=best)
