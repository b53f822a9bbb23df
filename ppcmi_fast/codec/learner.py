"""What a site trains: image codec, mask codec and a segmentation head on the latents, under one loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppcmi_fast.codec.image import ImageCodec
from ppcmi_fast.codec.mask import LinearMaskCodec, MaskAutoencoder
from ppcmi_fast.labels import check_labels

MaskCodec = LinearMaskCodec | MaskAutoencoder
LatentNetwork = Callable[[dict[int, Tensor]], dict[int, Tensor]]

# About the error of 4 bits an entry.
NOISE = 0.1


def soft_dice_loss(scores: Tensor, masks: Tensor, *, each_image: bool = False) -> Tensor:
    """1 - soft Dice, mean over foreground classes.

    Args:
        scores: float [N, classes, H, W] in 0..1.
        masks: int64 [N, H, W].
        each_image: the mean of every image's own, which makes as much of a structure of a few pixels as of a large one,
            and of nothing at all; otherwise over the batch as if it were one image.

    Raises:
        ValueError: a mask value that is no class of `scores`.
    """
    classes = scores.shape[1]
    check_labels("masks", masks, classes)
    truth = F.one_hot(masks, classes).movedim(-1, 1)[:, 1:].to(scores.dtype)
    guess = scores[:, 1:].clamp(0, 1)
    pixels = (2, 3) if each_image else (0, 2, 3)
    overlap = (guess * truth).sum(pixels)
    total = (guess + truth).sum(pixels)
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


class CodecLearner(nn.Module):
    """Everything a site trains before it uploads; all of it is averaged, sealed, when the codec is shared.

    The segmentation head has the mapper's form and its target (the mask code, squared error), so the latents learn to
    carry what the server will look for; turned into the server's frame, the mapper may start from it.

    Args:
        image_codec: trained by reconstruction and through the head.
        mask_codec: a `MaskAutoencoder` is trained by its own reconstruction; a `LinearMaskCodec` is fixed.
        head: plain image latents -> mask code; None trains for reconstruction alone.
        reconstruction: weight of the image's mean absolute error.
        noise: RMS of what is added to the latents, for what they will suffer on the wire.
        each_image: see `soft_dice_loss`.
    """

    def __init__(
        self,
        image_codec: ImageCodec,
        mask_codec: MaskCodec,
        head: nn.Module | None,
        reconstruction: float = 0.2,
        noise: float = NOISE,
        *,
        each_image: bool = False,
    ) -> None:
        super().__init__()
        self.image_codec, self.mask_codec, self.head = image_codec, mask_codec, head
        self.reconstruction, self.noise, self.each_image = reconstruction, noise, each_image

    def loss(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of a batch: images [N, 1, H, W] in 0..1, masks int64 [N, H, W]."""
        latents = {
            scale: z + self.noise * torch.randn(z.shape, generator=generator).to(z.device)
            for scale, z in self.image_codec.encode(images).items()
        }
        total = self.reconstruction * (self.image_codec.decode(latents) - images).abs().mean()
        targets = self.mask_codec.encode(masks)
        if isinstance(self.mask_codec, MaskAutoencoder):
            probabilities = self.mask_codec.decode(targets).float().softmax(1)
            cross_entropy = F.nll_loss(probabilities.clamp_min(1e-7).log(), masks)
            dice = soft_dice_loss(probabilities, masks, each_image=self.each_image)
            total = total + 0.5 * cross_entropy + 0.5 * dice
            targets = {scale: z.detach() for scale, z in targets.items()}
        if self.head is None:
            return total
        guess = self.head(latents)
        total = total + sum((F.mse_loss(guess[s].float(), z) for s, z in targets.items()), torch.zeros(()))
        if isinstance(self.mask_codec, LinearMaskCodec):
            scores = self.mask_codec.decode({s: z.float() for s, z in guess.items()})
            total = total + soft_dice_loss(scores, masks, each_image=self.each_image)
        return total

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class scores [N, classes, H, W] through the head, without the wire; for validation at the site."""
        assert self.head is not None
        return self.mask_codec.decode(self.head(self.image_codec.encode(images)))
