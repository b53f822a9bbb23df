"""The transform as a module, and folding it into the 1x1 convolutions beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from ppcmi_fast import ops
from ppcmi_fast.ops import KltParams
from ppcmi_fast.ops.params import MATERIAL

if TYPE_CHECKING:
    from typing_extensions import Self


class KeyedLatentTransform(nn.Module):
    """T(v) = M v + b on the channel vectors of latents (PPCMI-SF section III).

    The key material lies in buffers that move with the module and are never in its state_dict.

    Args:
        params: material from `key.klt_params`.
        backend: "auto", "cpu", "cuda" or "torch", as in `ppcmi_fast.ops`.
    """

    def __init__(self, params: KltParams, backend: str = "auto") -> None:
        super().__init__()
        self.mixing, self.dim, self.fold, self.backend = params.mixing, params.dim, params.fold, backend
        self._made: KltParams | None = params
        for name in MATERIAL:
            self.register_buffer(name, getattr(params, name), persistent=False)

    @property
    def params(self) -> KltParams:
        """The material, where the module lies."""
        material = {name: getattr(self, name) for name in MATERIAL}
        made = self._made
        if made is not None and all(getattr(made, name) is value for name, value in material.items()):
            return made
        made = KltParams(self.mixing, self.dim, self.fold, **material)
        # Tracing puts its own tensors in place of the buffers, for as long as it lasts.
        if not torch.compiler.is_compiling():
            self._made = made
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Follows the module to a device but keeps its precision: model.half() must not round the key.
        for name in MATERIAL:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.to(fn(value).device))
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "KeyedLatentTransform: key material is not pickled; save the rest, and make this from the key"
        )

    def __deepcopy__(self, memo: dict[int, object]) -> KeyedLatentTransform:
        # A copy within the process needs no second copy of the key; deepcopy would otherwise pickle.
        twin = KeyedLatentTransform(self.params, self.backend)
        return twin.train(self.training)

    def forward(self, x: Tensor, normalize: bool = True) -> Tensor:
        """[N, C, H, W] -> protected [N, D, H/fold, W/fold], differentiable."""
        return ops.klt(x, self.params, normalize=normalize, backend=self.backend)

    def inverse(self, y: Tensor) -> Tensor:
        """Protected [N, D, H, W] -> [N, C, H*fold, W*fold], differentiable."""
        return ops.klt(y, self.params, normalize=False, inverse=True, backend=self.backend)

    def quantize(self, x: Tensor, bits: int, normalize: bool = True) -> Tensor:
        """[N, C, H, W] -> packed codes uint8 [N, D * bits / 8, H/fold, W/fold]."""
        return ops.klt_quantize(x, self.params, bits=bits, normalize=normalize, backend=self.backend)

    def dequantize(self, codes: Tensor, bits: int) -> Tensor:
        """Packed codes -> float32 [N, C, H*fold, W*fold]."""
        return ops.klt_dequantize(codes, self.params, bits=bits, backend=self.backend)

    def extra_repr(self) -> str:
        """Sizes only; key material is never printed."""
        return f"mixing={self.mixing}, dim={self.dim}, fold={self.fold}"


def _check_conv(conv: nn.Conv2d, params: KltParams, channels: int, name: str) -> None:
    if (
        conv.kernel_size != (1, 1)
        or conv.groups != 1
        or conv.stride != (1, 1)
        or conv.padding not in ((0, 0), "valid")
    ):
        raise ValueError(f"conv: expected a plain 1x1 convolution, got {conv}")
    if params.fold != 1:
        raise ValueError(f"params: expected fold=1, got {params.fold}; a folded grid is no 1x1 convolution")
    if channels != params.dim:
        raise ValueError(f"conv: expected {name}={params.dim}, got {channels}")


def _new_conv(inputs: int, outputs: int, weight: Tensor, bias: Tensor, like: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 1)
    with torch.no_grad():
        conv.weight.copy_(weight[:, :, None, None])
        conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv.to(like)


def _parts(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    weight = conv.weight.detach().double().flatten(1)
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    return weight, bias if conv.bias is None else conv.bias.detach().double()


def fold_forward_into_conv(conv: nn.Conv2d, params: KltParams) -> nn.Conv2d:
    """The 1x1 convolution whose output is already protected: T(conv(x)) in one. Computed in float64.

    The unit-RMS normalization is no linear map: fold it only where the latents are used without it.

    Raises:
        ValueError: conv is no plain 1x1 convolution with params.dim outputs, or params folds positions.
    """
    _check_conv(conv, params, conv.out_channels, "out_channels")
    weight, bias = _parts(conv)
    matrix = params.dense()
    bias = matrix @ bias if params.offset is None else matrix @ bias + params.offset.double()
    return _new_conv(conv.in_channels, conv.out_channels, matrix @ weight, bias, conv.weight)


def fold_inverse_into_conv(params: KltParams, conv: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution that reads protected latents: conv(T^-1(y)) in one. Computed in float64.

    Raises:
        ValueError: conv is no plain 1x1 convolution with params.dim inputs, or params folds positions.
    """
    _check_conv(conv, params, conv.in_channels, "in_channels")
    weight, bias = _parts(conv)
    turned = weight @ params.dense().T
    bias = bias if params.offset is None else bias - turned @ params.offset.double()
    return _new_conv(conv.in_channels, conv.out_channels, turned, bias, conv.weight)
