"""The key material that an op takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from ppcmi_fast.ops.kernels import KERNELS, CpuCall, cpu_extension, table_addresses

MIXINGS = ("haar", "hadamard")
MATERIAL = ("matrix", "signs", "factors", "perm", "offset")
MAX_ODD_FACTOR = 63


def odd_part(dim: int) -> int:
    """The odd m of dim = m 2^a."""
    return dim // (dim & -dim)


def _expect(name: str, value: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    got = "None" if value is None else f"{value.dtype} {list(value.shape)}"
    if value is None or value.dtype != dtype or tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {got}; take it from key.klt_params")


@dataclass(frozen=True, repr=False, eq=False)
class KltParams:
    """Material of one keyed latent transform on D-vectors, `out = M v + offset`.

    Attributes:
        mixing: "haar" (dense) or "hadamard" (rounds of signs and fast Walsh-Hadamard transform, then a permutation).
        dim: D, channels after folding.
        fold: edge of the block of positions that is moved into channels first.
        matrix: haar: float32 [D, D], rows already permuted.
        signs: hadamard: float32 [R, D] of +1 and -1.
        factors: hadamard: float32 [R, m, m], m the odd part of D; mixes the m blocks after each transform.
        perm: hadamard: int64 [D], out[i] = v[perm[i]].
        offset: float32 [D] or None.

    Raises:
        ValueError: material of another size or dtype.
    """

    mixing: str
    dim: int
    fold: int = 1
    matrix: Tensor | None = None
    signs: Tensor | None = None
    factors: Tensor | None = None
    perm: Tensor | None = None
    offset: Tensor | None = None

    def __post_init__(self) -> None:
        dim = self.dim
        if self.mixing not in MIXINGS:
            raise ValueError(f"mixing: expected one of {MIXINGS}, got {self.mixing!r}")
        if dim < 1 or self.fold < 1 or dim % (self.fold * self.fold):
            raise ValueError(f"dim: expected a positive multiple of fold^2 = {self.fold**2}, got {dim}")
        if self.mixing == "haar":
            _expect("matrix", self.matrix, torch.float32, (dim, dim))
        else:
            rounds = 0 if self.signs is None else len(self.signs)
            odd = odd_part(dim)
            _expect("signs", self.signs, torch.float32, (max(rounds, 1), dim))
            _expect("factors", self.factors, torch.float32, (rounds, odd, odd))
            _expect("perm", self.perm, torch.int64, (dim,))
            if odd > MAX_ODD_FACTOR:
                raise ValueError(
                    f"dim: expected an odd part of at most {MAX_ODD_FACTOR}, got {dim}; use haar"
                )
        if self.offset is not None:
            _expect("offset", self.offset, torch.float32, (dim,))
        self._check_material()
        for name in MATERIAL:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.contiguous())  # the kernels read material densely

    def _check_material(self) -> None:
        """One device, and a perm that is one: the kernels write where it points."""
        for name in ("factors", "perm", "offset"):
            value = getattr(self, name)
            if value is not None and value.device != self.device:
                raise ValueError(
                    f"{name}: expected a tensor on {self.device} as the rest, got {value.device}"
                )
        # Tracing has no values to look at; what it traces was checked when it was first made.
        if self.perm is None or self.perm.is_meta or torch.compiler.is_compiling():
            return
        if not torch.equal(self.perm.sort().values, torch.arange(self.dim, device=self.device)):
            raise ValueError(f"perm: expected each of 0..{self.dim - 1} once; take it from key.klt_params")

    @cached_property
    def channels(self) -> int:
        """Channels before folding."""
        return self.dim // (self.fold * self.fold)

    @cached_property
    def handle(self) -> Any:
        """What the kernels of the material's device take."""
        mix = self.signs if self.matrix is None else self.matrix
        assert mix is not None
        return KERNELS[self.device.type].material(mix, self.factors, self.perm, self.offset)

    @cached_property
    def cpu_call(self) -> CpuCall | None:
        """What an ordinary call on the CPU needs (`ops/ordinary.py`); None for other devices, and where it folds.

        And for one channel: a single element is the only dense tensor that can be a negative view.
        """
        if self.fold != 1 or self.dim == 1 or self.device.type != "cpu":
            return None
        compiled = cpu_extension()
        functions = (compiled.klt, compiled.klt_quantize, compiled.klt_dequantize)
        return CpuCall(*functions, self.handle, *table_addresses(8))

    @cached_property
    def device(self) -> torch.device:
        """Where the material lies."""
        tensor = self.matrix if self.mixing == "haar" else self.signs
        assert tensor is not None
        return tensor.device

    def to(self, device: torch.device | str) -> KltParams:
        """The same material on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name in MATERIAL if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def dense(self) -> Tensor:
        """M as float64 [D, D]."""
        if self.matrix is not None:
            return self.matrix.double()
        assert self.signs is not None and self.factors is not None and self.perm is not None
        odd, power = odd_part(self.dim), self.dim // odd_part(self.dim)
        hadamard = torch.ones(1, 1, dtype=torch.float64, device=self.device)
        while len(hadamard) < power:
            hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
        hadamard = hadamard / power**0.5
        total = torch.eye(self.dim, dtype=torch.float64, device=self.device)
        for signs, factor in zip(self.signs.double(), self.factors.double(), strict=True):
            total = torch.kron(factor.reshape(odd, odd), hadamard) @ (signs[:, None] * total)
        return total[self.perm]

    def __repr__(self) -> str:
        return f"KltParams(mixing={self.mixing!r}, dim={self.dim}, fold={self.fold})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("KltParams: key material is not pickled; derive it from the key where it is needed")
