"""What networks start from: a codec from weights that only its sites can draw, the mapper from the sites' own head."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppcmi_fast.errors import WireError
from ppcmi_fast.key_schedule import KeyStream
from ppcmi_fast.klt import fold_forward_into_conv, fold_inverse_into_conv
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.ops import KltParams

VERSION = "ppcmi-fast/start/1"
PREFIX = "weights/"
Frames = Mapping[tuple[str, int], KltParams | None]


@torch.no_grad()
def draw_weights(module: nn.Module, key: bytes) -> None:
    """Give the convolutions of a fresh network first weights that only holders of `key` can draw.

    Trained weights resemble their first ones, so a codec that starts from a public seed is nearly public. Normal
    numbers, of the spread of torch's own start, 1 / sqrt(3 fan-in), because an orthogonal transform leaves their
    distribution as it is. Convolution by convolution, weights before biases; docs/keys.md says it byte by byte.

    Args:
        module: its parameters are those of convolutions and of normalizations, which stay as they are.
        key: 32 secret bytes, for this purpose alone.
    """
    stream = KeyStream(key)
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            spread = (3 * conv.weight[0].numel()) ** -0.5
            for parameter in conv.parameters():
                drawn = torch.from_numpy(stream.gaussians(parameter.numel())).view(parameter.shape)
                parameter.copy_(drawn * spread)


@torch.no_grad()
def head_in_frame(head: LatentMapper, frames: Frames, weights: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The weights of a mapper that does on latents in the server's frame what the head does on plain ones.

    Args:
        head: reads and writes plain latents, on grids that no key folds.
        frames: (role, scale) -> the frame's transform; None where the frame is the plain space.
        weights: scale -> [1, C, 1, 1], what entries of mask codes are multiplied by before they enter the frame.

    Returns:
        Floating-point tensors by their names in `LatentMapper.state_dict`.
    """
    turned = copy.deepcopy(head).cpu()
    for scale, conv in list(turned.read.items()):
        frame = frames["image", int(scale)]
        assert isinstance(conv, nn.Conv2d)
        if frame is not None:
            turned.read[scale] = fold_inverse_into_conv(frame, conv)
    for scale, conv in list(turned.write.items()):
        frame, weight = frames["mask", int(scale)], weights[int(scale)]
        assert isinstance(conv, nn.Conv2d)
        conv.weight.mul_(weight.view(-1, 1, 1, 1))
        if conv.bias is not None:
            conv.bias.mul_(weight.flatten())
        if frame is not None:
            turned.write[scale] = fold_forward_into_conv(conv, frame)
    return {name: value for name, value in turned.state_dict().items() if value.is_floating_point()}


def start_from_head(mapper: LatentMapper, tensors: Mapping[str, Tensor]) -> None:
    """Load what `head_in_frame` made, as it came over the wire.

    Raises:
        WireError: of another network, or not finite; nothing is loaded then.
    """
    weights = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    own = {name: value for name, value in mapper.state_dict().items() if value.is_floating_point()}
    if weights.keys() != own.keys():
        odd = sorted(weights.keys() ^ own.keys())[0]
        raise WireError(
            f"mapper_start: expected the {len(own)} weights of the mapper, got {len(weights)}, {odd!r} among those that"
            " only one has; use the same settings at sites and server"
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise WireError(
                f"mapper_start: expected {name} {list(own[name].shape)}, got {list(value.shape)}; use the same settings"
                " at sites and server"
            )
        if not bool(value.isfinite().all()):
            raise WireError(
                f"mapper_start: expected finite {name}, got NaN or infinity; the training of the sites' codec has"
                " diverged"
            )
    mapper.load_state_dict(weights, strict=False)
