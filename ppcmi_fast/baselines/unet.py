"""The U-Nets that the federation is judged against: MONAI's residual U-Net, pooled or per site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.augment import augment
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.training import Fit, FitSettings, FitState, autocast

CHANNELS = (16, 32, 64, 128, 256)


def make_unet(classes: int, seed: int) -> nn.Module:
    """MONAI's residual U-Net (Kerfoot et al. 2018), 1.6 M parameters, five stages.

    Raises:
        ConfigError: MONAI is not installed.
    """
    try:
        from monai.networks.nets import UNet
    except ImportError as error:
        raise ConfigError('baselines: MONAI is missing; cure: pip install "ppcmi-fast[train]"') from error
    torch.manual_seed(seed)
    net: nn.Module = UNet(2, 1, classes, CHANNELS, (2,) * (len(CHANNELS) - 1), num_res_units=2)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def predict(net: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    """Class maps int64 [N, H, W] of images [N, 1, H, W]."""
    with torch.no_grad():
        return torch.cat([net(images[i : i + batch]).argmax(1) for i in range(0, len(images), batch)])


def train_unet(
    net: nn.Module,
    train: Arrays,
    validate: Callable[[], float],
    settings: FitSettings,
    batch: int,
    checkpoint: Path,
    progress: Callable[[int, dict[str, float]], None],
) -> FitState:
    """Train on one set of images with Dice + cross-entropy and the federation's own augmentation."""
    from monai.losses import DiceCELoss

    criterion = DiceCELoss(to_onehot_y=True, softmax=True)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(train.images), (batch,), generator=generator)
        images, masks = augment(train.images[index], train.masks[index], generator, train.modality)
        with autocast():
            logits = net(images.contiguous(memory_format=torch.channels_last))
        value: Tensor = criterion(logits.float(), masks.unsqueeze(1))
        return value

    fit = Fit(net, loss, settings, checkpoint=checkpoint, validate=validate, progress=progress)
    return fit.run()
