"""An image asked about in several views, larger and turned, and one answer made of theirs.

A structure of a few pixels is of a few more in a larger view, and networks err and the wire rounds in each view
otherwise, of which a mean keeps less. Views are made and put back at the site; to the server they are images as others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppcmi_fast.data.augment import sampling_grid


@dataclass(frozen=True)
class View:
    """Turned by so many degrees about the middle of the image, and `zoom` times as large."""

    degrees: float = 0.0
    zoom: float = 1.0

    @property
    def back(self) -> View:
        """What puts it back."""
        return View(-self.degrees, 1 / self.zoom)

    def of(self, images: Tensor, padding: str) -> Tensor:
        """Float [N, C, S, S] -> the same shape; `padding` is what lies outside, as `torch` names it."""
        angle, zoom, middle = torch.tensor([[math.radians(self.degrees)], [self.zoom], [0.0]])
        grid = sampling_grid(angle, zoom, middle, middle, [1, *images.shape[1:]]).to(images.device)
        every = grid.expand(len(images), -1, -1, -1)
        return F.grid_sample(images, every, padding_mode=padding, align_corners=False)


# The first is the image as it is and sees all of it. The others are of those that validated best on cardiac MRI; a
# fifth to an eighth added next to nothing.
VIEWS = (View(), View(-10, 1.3), View(10, 1.15), View(0, 1.45))


def in_views(images: Tensor, count: int) -> Tensor:
    """Float [N, 1, S, S] -> [count * N, 1, S, S]: all of them in one view after another, of the first `count`."""
    if count == 1:
        return images
    return torch.cat([images, *(view.of(images, "border") for view in VIEWS[1:count])])


def merge_views(scores: Tensor, count: int) -> Tensor:
    """Of scores [count * N, classes, S, S] of `in_views`, position by position the mean over the views that see it.

    Returns:
        Float [N, classes, S, S].
    """
    if count == 1:
        return scores
    total, *others = scores.chunk(count)
    seen = torch.ones_like(total[:, :1])
    for view, found in zip(VIEWS[1:count], others, strict=True):
        total = total + view.back.of(found, "zeros")
        seen = seen + view.back.of(torch.ones_like(seen[:1]), "zeros")
    return total / seen
