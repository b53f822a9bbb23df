"""The server's network: protected image latents in, protected mask latents out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppcmi_fast.codec.layers import conv_norm, residual_blocks


class AttentionGate(nn.Module):
    """How much of a grid's features passes, position by position, by these and by what comes up (Oktay et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 2)
        self.of_coarse = nn.Conv2d(width, inner, 1, bias=False)
        self.of_own = nn.Conv2d(width, inner, 1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.score = nn.Conv2d(inner, 1, 1)

    def forward(self, coarse: Tensor, own: Tensor) -> Tensor:
        """Both [N, width, H, W] -> [N, 1, H, W] in 0..1."""
        joint = F.silu(self.norm(self.of_coarse(coarse) + self.of_own(own)))
        return torch.sigmoid(self.score(joint))


class LatentMapper(nn.Module):
    """Cross-scale fusion: down through the grids to the coarsest (and below), up again, one head per mask scale.

    Args:
        in_scales: scale -> (channels, stride of its grid) of the image latents.
        out_scales: scale -> (channels, stride of its grid) of the mask latents.
        width: channels on the finest grid; coarser ones have width * growth.
        blocks: residual blocks per grid and direction.
        context: further halvings below the coarsest input grid, for the wide view that the paper's pyramid pooling
            gives.
        attention: let gates decide what of a grid's own features joins what comes up from coarser grids.
        sites: with more than 0, one learned 1x1 adapter per site before and after (trust mode "sites").
    """

    def __init__(
        self,
        in_scales: dict[int, tuple[int, int]],
        out_scales: dict[int, tuple[int, int]],
        width: int = 64,
        blocks: int = 2,
        context: int = 1,
        sites: int = 0,
        *,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.in_scales, self.out_scales, self.sites = dict(in_scales), dict(out_scales), sites
        finest = min(grid for _, grid in [*in_scales.values(), *out_scales.values()])
        coarsest = max(grid for _, grid in [*in_scales.values(), *out_scales.values()]) * 2**context
        self.grids = [finest]
        while self.grids[-1] < coarsest:
            self.grids.append(self.grids[-1] * 2)
        self.first_grid = min(grid for _, grid in in_scales.values())
        widths = {grid: width if i == 0 else 2 * width for i, grid in enumerate(self.grids)}
        self.read = nn.ModuleDict({str(s): nn.Conv2d(d, widths[g], 1) for s, (d, g) in in_scales.items()})
        self.down_blocks = nn.ModuleDict(
            {str(g): residual_blocks(widths[g], blocks) for g in self.grids if g >= self.first_grid}
        )
        self.last_grid = min(grid for _, grid in out_scales.values())
        upward = [g for g in self.grids[:-1] if g >= self.last_grid]
        self.up_blocks = nn.ModuleDict({str(g): residual_blocks(widths[g], blocks) for g in upward})
        pairs = list(zip(self.grids, self.grids[1:], strict=False))
        self.down = nn.ModuleDict(
            {str(a): conv_norm(widths[a], widths[b], stride=2) for a, b in pairs if a >= self.first_grid}
        )
        self.up = nn.ModuleDict({str(a): nn.Conv2d(widths[b], widths[a], 1) for a, b in pairs if a in upward})
        joined = [g for g in upward if g >= self.first_grid]
        self.gates = nn.ModuleDict({str(g): AttentionGate(widths[g]) for g in joined if attention})
        self.write = nn.ModuleDict({str(s): nn.Conv2d(widths[g], d, 1) for s, (d, g) in out_scales.items()})
        self.adapt_in = nn.ParameterDict(
            {str(s): torch.eye(d).repeat(sites, 1, 1) for s, (d, _) in in_scales.items() if sites}
        )
        self.adapt_out = nn.ParameterDict(
            {str(s): torch.eye(d).repeat(sites, 1, 1) for s, (d, _) in out_scales.items() if sites}
        )

    def _adapt(self, adapters: nn.ParameterDict, scale: int, x: Tensor, site: Tensor | None) -> Tensor:
        if not self.sites:
            return x
        if site is None:
            raise ValueError(
                "site: expected int64 [N], the site of each sample, got None; this mapper has adapters"
            )
        return torch.einsum("nij,njhw->nihw", adapters[str(scale)][site], x)

    def forward(self, latents: dict[int, Tensor], site: Tensor | None = None) -> dict[int, Tensor]:
        """Map a batch.

        Args:
            latents: scale -> [N, channels, H/grid, W/grid] float32.
            site: int64 [N], needed only with adapters.

        Returns:
            scale -> [N, channels, H/grid, W/grid] of the mask latents.
        """
        read: dict[int, Tensor] = {}
        for scale, (_, grid) in self.in_scales.items():
            x = self.read[str(scale)](self._adapt(self.adapt_in, scale, latents[scale], site))
            read[grid] = read[grid] + x if grid in read else x
        features: dict[int, Tensor] = {}
        below: Tensor | None = None
        for index, grid in enumerate(self.grids):
            if grid < self.first_grid:
                continue
            here = read.get(grid)
            if below is not None:
                down = self.down[str(self.grids[index - 1])](below)
                here = down if here is None else here + down
            assert here is not None
            below = features[grid] = self.down_blocks[str(grid)](here)
        x = features[self.grids[-1]]
        outputs: dict[int, Tensor] = {}
        for grid in reversed(self.grids):
            if grid < self.last_grid:
                break
            if grid != self.grids[-1]:
                x = self.up[str(grid)](x)
                # A grid of odd size is halved by rounding up, so twice the coarser one may be too large.
                size = features[grid].shape[2:] if grid in features else (2 * x.shape[2], 2 * x.shape[3])
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
                if grid in features:
                    own = features[grid]
                    x = x + (self.gates[str(grid)](x, own) * own if self.gates else own)
                x = self.up_blocks[str(grid)](x)
            for scale, (_, out_grid) in self.out_scales.items():
                if out_grid == grid:
                    outputs[scale] = self._adapt(self.adapt_out, scale, self.write[str(scale)](x), site)
        return outputs
