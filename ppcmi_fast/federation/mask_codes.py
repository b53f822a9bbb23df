"""What mask codes keep of the masks: what is lost there, no mapper finds again."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ppcmi_fast.codec import LinearMaskCodec, MaskCodec
from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.evaluate import mean_dice

ENOUGH = 0.98


@torch.no_grad()
def kept_dice(codec: MaskCodec, data: Arrays, classes: int) -> float:
    """Mean Dice, over images and classes, of masks that were encoded and decoded, and nothing else.

    Args:
        codec: where its weights lie, the masks go.
        data: at least one image.
        classes: background included.
    """
    device = next(codec.buffers()).device
    maps = [codec.decode(codec.encode(masks.to(device))).argmax(1).cpu() for masks in data.masks.split(64)]
    return mean_dice(torch.cat(maps), data, classes)


def rank_advice(config: RunConfig, sites: Mapping[str, Arrays], classes: int) -> str:
    """What to set where the frequencies of a linear mask code are too few for the masks; "" where they suffice.

    Every site can tell from its own masks, before anything is trained: the codec is fixed.
    """
    if config.codec.mask != "linear":
        return ""
    block, rank = config.codec.mask_block, config.codec.mask_rank

    def kept(rank: int) -> float:
        codec = LinearMaskCodec(classes, block, rank)
        return min(kept_dice(codec, data, classes) for data in sites.values())

    now = kept(rank)
    if now >= ENOUGH or 2 * rank > block * block:
        return ""
    return (
        f"codec.mask_rank={rank} keeps a Dice of {now:.3f} of the training masks of the site with the finest"
        f" structures, {2 * rank} would keep {kept(2 * rank):.3f} and make replies twice as large"
    )
