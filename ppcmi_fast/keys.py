"""Secret keys of sites and federations, the transforms drawn from them, and the server's switch matrices.

A key gives separation between sites and obfuscation, not confidentiality: see docs/keys.md.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from ppcmi_fast.errors import KeyFileError
from ppcmi_fast.key_schedule import KeyStream, derive, schedule_info
from ppcmi_fast.ops.params import MAX_ODD_FACTOR, KltParams, odd_part

if TYPE_CHECKING:
    from typing_extensions import Self

SECRET_BYTES = 32
ROLES = ("image", "mask")


def check_federation_id(federation_id: str) -> None:
    """Refuse a name that could not be bound to keys; '|' separates the parts of a derivation.

    Raises:
        ValueError: empty, not printable, or with '|'.
    """
    text = isinstance(federation_id, str) and federation_id.isprintable()
    if not text or not federation_id or "|" in federation_id:
        raise ValueError(f"federation_id: expected printable text without '|', got {federation_id!r}")


class _Key:
    """32 secret bytes in a federation; never printed, pickled or copied."""

    kind: ClassVar[str]

    def __init__(self, secret: bytes, federation_id: str) -> None:
        if not isinstance(secret, bytes) or len(secret) != SECRET_BYTES:
            got = f"{len(secret)} bytes" if isinstance(secret, bytes) else type(secret).__name__
            raise ValueError(
                f"secret: expected {SECRET_BYTES} bytes, got {got}; use {type(self).__name__}.generate"
            )
        check_federation_id(federation_id)
        self._secret = secret
        self.federation_id = federation_id

    @classmethod
    def generate(cls, federation_id: str) -> Self:
        """Draw a key from the operating system."""
        return cls(secrets.token_bytes(SECRET_BYTES), federation_id)

    def save(self, path: Path) -> None:
        """Write the 32 bytes to a new file that only its owner can read (mode 0600).

        Raises:
            KeyFileError: the file exists, or cannot be written.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise KeyFileError(
                f"{path}: expected no such file, it exists; a key is never overwritten"
            ) from None
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be written ({error.strerror}); choose another path") from None
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(self._secret)

    @classmethod
    def load(cls, path: Path, federation_id: str) -> Self:
        """Read a key file.

        Raises:
            KeyFileError: missing, not a regular file, readable by others, or not of 32 bytes.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise KeyFileError(
                f"{path}: expected a key file, cannot open it ({error.strerror}); make one with `ppcmi keygen`"
            ) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path}: expected a regular file; make one with `ppcmi keygen`")
            if status.st_mode & 0o077:
                raise KeyFileError(
                    f"{path}: expected mode 0600, got {stat.S_IMODE(status.st_mode):04o}; run chmod 600 on it"
                )
            secret = os.read(descriptor, SECRET_BYTES + 1)
        finally:
            os.close(descriptor)
        if len(secret) != SECRET_BYTES:
            got = f"{len(secret)} bytes" if len(secret) <= SECRET_BYTES else f"more than {SECRET_BYTES} bytes"
            raise KeyFileError(
                f"{path}: expected {SECRET_BYTES} bytes, got {got}; make one with `ppcmi keygen`"
            )
        return cls(secret, federation_id)

    def klt_params(
        self,
        role: str,
        scale: int,
        dim: int,
        mixing: str = "hadamard",
        fold: int = 1,
        *,
        rounds: int = 2,
        epoch: int = 0,
        offset_scale: float = 0.0,
    ) -> KltParams:
        """Draw one transform of this key (DESIGN section 3; paper section III-C).

        Args:
            role: "image" or "mask".
            scale: stride of the latents.
            dim: D, channels after folding.
            mixing: "haar" or "hadamard"; a federation key has "haar" alone.
            fold: edge of the block of positions moved into channels.
            rounds: rounds of hadamard mixing.
            epoch: raised to renew all transforms of a federation.
            offset_scale: standard deviation of the offset, 0 for none.

        Raises:
            ValueError: an argument outside its range.
        """
        _check_arguments(role, scale, dim, rounds, epoch, offset_scale)
        stream = KeyStream(
            derive(self._secret, self.federation_id, self._info(role, scale, dim, mixing, epoch))
        )
        if mixing == "haar":
            matrix = stream.haar(dim)[stream.permutation(dim)]
            offset = _offset(stream, dim, offset_scale)
            return KltParams("haar", dim, fold, matrix=torch.from_numpy(matrix).float(), offset=offset)
        if mixing != "hadamard":
            raise ValueError(f"mixing: expected 'haar' or 'hadamard', got {mixing!r}")
        odd = odd_part(dim)
        if odd > MAX_ODD_FACTOR or odd == dim > 1:
            raise ValueError(
                f"dim: expected m * 2^a with odd m <= {MAX_ODD_FACTOR} and a >= 1 for hadamard mixing, got {dim};"
                " use mixing='haar'"
            )
        signs = np.stack([stream.signs(dim) for _ in range(rounds)])
        factors = np.stack([stream.haar(odd) if odd > 1 else np.ones((1, 1)) for _ in range(rounds)])
        perm = stream.permutation(dim)
        return KltParams(
            "hadamard",
            dim,
            fold,
            signs=torch.from_numpy(signs).float(),
            factors=torch.from_numpy(factors).float(),
            perm=torch.from_numpy(perm),
            offset=_offset(stream, dim, offset_scale),
        )

    def derive(self, info: str) -> bytes:
        """32 bytes for another purpose, named by `info`: sealing, and what a codec starts from."""
        return derive(self._secret, self.federation_id, info)

    def _info(self, role: str, scale: int, dim: int, mixing: str, epoch: int) -> str:
        return schedule_info(self.kind, role, scale, dim, mixing, epoch)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Key):
            return NotImplemented
        same = hmac.compare_digest(self._secret, other._secret)
        return same and self.kind == other.kind and self.federation_id == other.federation_id

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(federation_id={self.federation_id!r}, secret=hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__}: a key is neither pickled nor copied; save it to a key file")


class SiteKey(_Key):
    """The secret of one site."""

    kind = "site"


class FederationKey(_Key):
    """The secret that the sites of a federation share and the server does not have.

    It mixes by "haar" alone: then a single switch matrix tells nothing of the site's own transform.
    """

    kind = "federation"

    def _info(self, role: str, scale: int, dim: int, mixing: str, epoch: int) -> str:
        if mixing != "haar":
            raise ValueError(f"mixing: expected 'haar' for a federation key, got {mixing!r}")
        return super()._info(role, scale, dim, mixing, epoch)


def _check_arguments(role: str, scale: int, dim: int, rounds: int, epoch: int, offset_scale: float) -> None:
    if role not in ROLES:
        raise ValueError(f"role: expected one of {ROLES}, got {role!r}")
    for name, value, least in (
        ("scale", scale, 1),
        ("dim", dim, 1),
        ("rounds", rounds, 1),
        ("epoch", epoch, 0),
    ):
        # 4.0 and True would be written into the derivation as such, and silently give another transform than 4 and 1.
        if type(value) is not int or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if not 0 <= offset_scale < float("inf"):
        raise ValueError(f"offset_scale: expected a finite number of at least 0, got {offset_scale}")


def _offset(stream: KeyStream, dim: int, scale: float) -> Tensor | None:
    return torch.from_numpy(stream.gaussians(dim) * scale).float() if scale > 0 else None


class SwitchMatrix(NamedTuple):
    """An affine change of frame: matrix float32 [D, D], offset float32 [D] or None."""

    matrix: Tensor
    offset: Tensor | None

    def __repr__(self) -> str:
        # In trust mode "server" the matrix is the site's inverse transform.
        return f"SwitchMatrix(dim={len(self.matrix)}, values hidden)"


def _frames(site: KltParams, frame: KltParams | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if frame is not None and frame.dim != site.dim:
        raise ValueError(f"frame: expected dim {site.dim} as the site's, got {frame.dim}")
    zero = torch.zeros(site.dim, dtype=torch.float64)
    common = torch.eye(site.dim, dtype=torch.float64) if frame is None else frame.dense()
    shift = zero if frame is None or frame.offset is None else frame.offset.double()
    return site.dense(), zero if site.offset is None else site.offset.double(), common, shift


def _switch(matrix: Tensor, offset: Tensor) -> SwitchMatrix:
    return SwitchMatrix(matrix.float(), offset.float() if bool(offset.any()) else None)


def switch_up(site: KltParams, frame: KltParams | None) -> SwitchMatrix:
    """A = Q_g T^-1: takes what the site sends to the server's frame. `frame` None is the paper's server, Q_g = I.

    Raises:
        ValueError: the dims differ.
    """
    own, own_offset, common, shift = _frames(site, frame)
    matrix = common @ own.T
    return _switch(matrix, shift - matrix @ own_offset)


def switch_down(site: KltParams, frame: KltParams | None) -> SwitchMatrix:
    """B = T Q_g^-1: takes what the server found back to the site's own frame.

    Raises:
        ValueError: the dims differ.
    """
    own, own_offset, common, shift = _frames(site, frame)
    matrix = own @ common.T
    return _switch(matrix, own_offset - matrix @ shift)
