"""The segmentation networks of the baselines, all MONAI's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ppcmi_fast.errors import ConfigError

BATCH_NORM = "_batch_norm"
ARCHITECTURES = (
    "unet",
    "attention_unet",
    "segresnet",
    "dynunet",
    f"unet{BATCH_NORM}",
    f"dynunet{BATCH_NORM}",
)
CHANNELS = (16, 32, 64, 128, 256)
STRIDES = (2, 2, 2, 2)


def _networks() -> Any:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ConfigError('baselines: MONAI is missing; cure: pip install "ppcmi-fast[train]"') from error
    return nets


def make_network(architecture: str, classes: int, seed: int) -> nn.Module:
    """A network [N, 1, H, W] -> logits [N, classes, H, W], of 1.2 to 2 million parameters.

    Args:
        architecture: "unet" (residual units, Kerfoot et al. 2018), "attention_unet" (Oktay et al. 2018), "segresnet"
            (Myronenko 2018, without its autoencoder) or "dynunet" (nnU-Net's, Isensee et al. 2021, without deep
            supervision). "unet" and "dynunet" have instance norms; "unet_batch_norm" and "dynunet_batch_norm" are these
            with batch norms, as "attention_unet" has them.
        classes: with the background.
        seed: fixes the first weights.

    Raises:
        ConfigError: MONAI is not installed.
        ValueError: an unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    nets, kind = _networks(), architecture.removesuffix(BATCH_NORM)
    norm = "INSTANCE" if kind == architecture else "BATCH"
    torch.manual_seed(seed)
    if kind == "unet":
        net = nets.UNet(2, 1, classes, CHANNELS, STRIDES, num_res_units=2, norm=norm)
    elif kind == "attention_unet":
        net = nets.AttentionUnet(2, 1, classes, CHANNELS, STRIDES)
    elif kind == "segresnet":
        net = nets.SegResNet(
            2,
            16,
            1,
            classes,
            blocks_down=(1, 2, 2, 3),
            blocks_up=(1, 1, 1),
            norm=("GROUP", {"num_groups": 8}),
        )
    else:
        net = nets.DynUNet(
            2,
            1,
            classes,
            [3] * 5,
            [1, *STRIDES],
            list(STRIDES),
            filters=(16, 32, 64, 128, 160),
            norm_name=(norm, {"affine": True}),
        )
    # On a CPU group norms of channels-last tensors are slow: segresnet would take half as long again.
    layout = torch.contiguous_format if kind == "segresnet" else torch.channels_last
    return net.to(memory_format=layout)  # type: ignore[no-any-return]
