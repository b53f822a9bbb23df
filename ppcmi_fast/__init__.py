"""ppcmi-fast: collaborative medical image segmentation on keyed, quantized latents (PPCMI-SF, arXiv 2603.05541)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "FederationKey": "ppcmi_fast.keys",
    "ImageCodec": "ppcmi_fast.codec",
    "KeyedLatentTransform": "ppcmi_fast.klt",
    "LatentMapper": "ppcmi_fast.mapper",
    "LinearMaskCodec": "ppcmi_fast.codec",
    "MaskAutoencoder": "ppcmi_fast.codec",
    "SiteKey": "ppcmi_fast.keys",
}

if TYPE_CHECKING:
    from ppcmi_fast import ops
    from ppcmi_fast.codec import ImageCodec, LinearMaskCodec, MaskAutoencoder
    from ppcmi_fast.keys import FederationKey, SiteKey
    from ppcmi_fast.klt import KeyedLatentTransform
    from ppcmi_fast.mapper import LatentMapper

__all__ = [
    "FederationKey",
    "ImageCodec",
    "KeyedLatentTransform",
    "LatentMapper",
    "LinearMaskCodec",
    "MaskAutoencoder",
    "SiteKey",
    "__version__",
    "ops",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that importing the package costs next to nothing."""
    if name == "ops":
        return importlib.import_module("ppcmi_fast.ops")
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'ppcmi_fast' has no attribute {name!r}")
