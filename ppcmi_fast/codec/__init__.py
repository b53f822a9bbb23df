"""Codecs: images and masks to latents and back."""

from ppcmi_fast.codec.image import ImageCodec
from ppcmi_fast.codec.learner import CodecLearner, MaskCodec
from ppcmi_fast.codec.mask import MASK_WEIGHTS, LinearMaskCodec, MaskAutoencoder

__all__ = ["MASK_WEIGHTS", "CodecLearner", "ImageCodec", "LinearMaskCodec", "MaskAutoencoder", "MaskCodec"]
