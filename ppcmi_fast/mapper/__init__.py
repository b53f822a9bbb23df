"""The mapper: protected image latents to protected mask latents."""

from ppcmi_fast.mapper.network import LatentMapper
from ppcmi_fast.mapper.training import LatentSet, train_mapper

__all__ = ["LatentMapper", "LatentSet", "train_mapper"]
