"""The mapper: protected image latents to protected mask latents."""

from ppcmi_fast.mapper.network import LatentMapper
from ppcmi_fast.mapper.training import LatentSet, map_latents, train_mapper

__all__ = ["LatentMapper", "LatentSet", "map_latents", "train_mapper"]
