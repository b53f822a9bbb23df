"""Which memory format an op keeps."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if that is how x [N, C, H, W] lies (and not both), or a crop of such a tensor; else contiguous."""
    if x.is_contiguous():
        return torch.contiguous_format
    crop = x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) >= x.shape[1]
    last = crop or x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
