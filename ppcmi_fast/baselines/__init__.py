"""What the federation is judged against, by the names of `baselines.methods`."""

from __future__ import annotations

from collections.abc import Callable

from ppcmi_fast.baselines.base import Outcome, SiteData, Workbench
from ppcmi_fast.baselines.unet import local, pooled

__all__ = ["METHODS", "Outcome", "SiteData", "Workbench"]

METHODS: dict[str, Callable[[Workbench], Outcome]] = {
    "unet_centralised": pooled,
    "unet_local": local,
}
