"""What a site declares before anything else, and how the server checks it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ppcmi_fast import wire
from ppcmi_fast.errors import ConfigError, WireError

Trust = Literal["server", "federation", "sites"]
BITS = (2, 4, 8, 32)
# A switch matrix is a product of orthogonal ones, rounded to float32 once: entries of A A^T - I stay near 1e-6.
ORTHOGONALITY = 1e-3


def check_trust(trust: str) -> None:
    """Refuse a trust mode that is none.

    Raises:
        ConfigError: not "server", "federation" or "sites".
    """
    if trust not in get_args(Trust):
        raise ConfigError(
            f"trust: expected one of {', '.join(get_args(Trust))}, got {trust!r}; correct the setting"
        )


@dataclass
class Registration:
    """What a site declared: shapes as {role: {scale: [D, h, w]}}, bits, weights of mask codes, switch matrices."""

    shapes: dict[str, dict[int, list[int]]]
    bits_up: int
    bits_down: int
    mask_weights: list[float]
    message: wire.Message

    @property
    def latents(self) -> str:
        """In words, for errors."""
        return f"{self.shapes} at {self.bits_up} bits, mask codes times {self.mask_weights}"


def is_count(value: Any, least: int) -> bool:
    """JSON's true is an int to isinstance."""
    return type(value) is int and value >= least


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _expect(holds: bool, what: str, got: Any) -> None:
    if not holds:
        raise WireError(
            f"register: expected {what}, got {str(got)[:80]}; register with the same ppcmi-fast as the server's"
        )


def read_registration(message: wire.Message) -> Registration:
    """The fields of a registration, or a WireError that says which is wrong."""
    declared: Any = message.fields.get("shapes")
    up: Any = message.fields.get("bits_up")
    down: Any = message.fields.get("bits_down")
    for name, bits in (("bits_up", up), ("bits_down", down)):
        _expect(type(bits) is int and bits in BITS, f"{name} as one of {BITS}", repr(bits))
    weights: Any = message.fields.get("mask_weights")
    two = isinstance(weights, list) and len(weights) == 2 and all(_is_weight(v) for v in weights)
    _expect(two, "mask_weights as two finite numbers over 0", repr(weights))
    roles = isinstance(declared, dict) and set(declared) == {"image", "mask"}
    _expect(roles, "shapes of image and mask", declared)
    shapes: dict[str, dict[int, list[int]]] = {}
    # Image latents only go up, mask latents both ways.
    for role, widths in (("image", {up}), ("mask", {up, down})):
        scales = declared[role]
        _expect(isinstance(scales, dict) and bool(scales), f"shapes of {role} by scale", scales)
        shapes[role] = {}
        for scale, shape in scales.items():
            _expect(wire.is_scale(scale), f"a stride as scale of {role}", repr(scale))
            sizes = isinstance(shape, list) and len(shape) == 3 and all(is_count(v, 1) for v in shape)
            _expect(sizes, f"[D, h, w] of {role}/{scale}", shape)
            filled = all(shape[0] * bits % 8 == 0 for bits in widths)
            _expect(filled, f"a D of {role}/{scale} that fills bytes at {sorted(widths)} bits", shape[0])
            shapes[role][int(scale)] = shape
    return Registration(shapes, up, down, weights, message)


def check_switch(tensors: dict[str, Tensor], name: str, dim: int) -> None:
    """A switch matrix, where there is one, is orthogonal [D, D], and its offset, where there is one, finite [D]."""
    matrix, offset = tensors.get(name), tensors.get(name.replace("/", "_offset/", 1))
    if matrix is not None:
        if tuple(matrix.shape) != (dim, dim):
            raise WireError(
                f"{name}: expected [{dim}, {dim}], got {list(matrix.shape)}; declare the same shapes"
            )
        error = float((matrix.double() @ matrix.double().T - torch.eye(dim, dtype=torch.float64)).abs().max())
        # Written so that NaN is refused as well.
        if not error < ORTHOGONALITY:
            raise WireError(
                f"{name}: expected an orthogonal matrix, got one with |A A^T - I| = {error:.3g}; derive it with"
                " keys.switch_up or keys.switch_down"
            )
    if offset is not None and (tuple(offset.shape) != (dim,) or not bool(offset.isfinite().all())):
        raise WireError(
            f"{name}: expected a finite offset [{dim}], got {list(offset.shape)}; derive it with the matrix"
        )


def same_latents(one: Registration, other: Registration) -> bool:
    """Whether latents that two sites send can train one mapper: the same shapes, bits and weights of mask codes."""
    return (one.shapes, one.bits_up, one.mask_weights) == (other.shapes, other.bits_up, other.mask_weights)


def same_up(one: Registration, other: Registration) -> bool:
    """Whether codes uploaded under one registration mean the same under the other."""

    def up(registration: Registration) -> dict[str, Tensor]:
        return {k: v for k, v in registration.message.tensors.items() if k.startswith("up")}

    a, b = up(one), up(other)
    return same_latents(one, other) and set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
