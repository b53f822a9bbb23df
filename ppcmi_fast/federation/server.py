"""The server: what it is handed is bytes, and what it can do with them is in this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ppcmi_fast import ops, wire
from ppcmi_fast.errors import WireError
from ppcmi_fast.federation.registration import (
    Registration,
    Trust,
    check_switch,
    check_trust,
    is_count,
    read_registration,
    same_latents,
    same_up,
)
from ppcmi_fast.federation.start import start_from_head
from ppcmi_fast.mapper import LatentMapper, map_latents

Latents = dict[int, Tensor]
PARTITIONS = ("train", "val")
FROM_SITES = (
    "register",
    "upload",
    "query",
    "tune",
    "tune_fetch",
    "mapper_start",
    "codec_round",
    "codec_fetch",
)


class Tuning(Protocol):
    """Takes part in split fine-tuning for the server, see `tuning.MapperTuning`."""

    def keep(self, message: wire.Message) -> None:
        """Note one site's latents of a step."""

    def answer(self, message: wire.Message) -> bytes:
        """The gradient at them."""


@dataclass
class _Uploads:
    image: dict[int, list[Tensor]] = field(default_factory=dict)
    mask: dict[int, list[Tensor]] = field(default_factory=dict)
    site: list[Tensor] = field(default_factory=list)


@dataclass
class ServerLatents:
    """One partition of what was uploaded, as the mapper's training set; dequantized into the frame batch by batch."""

    server: Server
    image: Latents
    mask: Latents
    site: Tensor

    def __len__(self) -> int:
        return len(self.site)

    def batch(self, index: Tensor) -> tuple[Latents, Latents, Tensor]:
        """Image latents, mask latents (float32, in the server's frame) and sites of the samples `index`."""
        site = self.site[index]
        inputs = self.server.to_frame("image", {s: z[index] for s, z in self.image.items()}, site)
        return inputs, self.server.to_frame("mask", {s: z[index] for s, z in self.mask.items()}, site), site


class Server:
    """Relays sealed codecs, collects protected latents, holds the mapper and answers queries.

    Args:
        federation_id: messages of others are refused.
        epoch: messages of other epochs are refused.
        trust: "server": switch matrices invert the sites' keys (the paper); "federation": they lead to a frame that
            the server does not know; "sites": there are none, and the mapper has adapters.

    Raises:
        ConfigError: another trust mode.
    """

    def __init__(self, federation_id: str, epoch: int, trust: Trust) -> None:
        check_trust(trust)
        self.federation_id, self.epoch, self.trust = federation_id, epoch, trust
        self.mapper: LatentMapper | None = None
        # Set as long as a site may say what it starts from.
        self.starting: LatentMapper | None = None
        self.tuning: Tuning | None = None
        self.sites: list[str] = []
        self._registrations: dict[str, Registration] = {}
        self._uploads = {partition: _Uploads() for partition in PARTITIONS}
        self._codec_round: int = -1
        self._sealed: dict[str, tuple[float, Tensor]] = {}
        self._stacked: dict[tuple[str, str, int], tuple[Tensor, Tensor | None]] = {}

    def receive(self, data: bytes) -> bytes | None:
        """Take one message; queries and fetches have an answer.

        Raises:
            WireError: damaged, foreign or unexpected; nothing is changed then.
        """
        message = wire.decode(
            data,
            self.federation_id,
            self.epoch,
            FROM_SITES,
        )
        if message.kind == "register":
            self._register(message)
            return None
        if message.kind == "codec_round":
            self._keep_codec(message)
            return None
        if message.kind == "codec_fetch":
            return self._relay_codecs(message)
        registration = self._registrations.get(message.sender)
        if registration is None:
            raise WireError(f"sender: expected a registered site, got {message.sender!r}; register first")
        if message.kind == "upload":
            self._keep_upload(message, registration)
            return None
        if message.kind == "mapper_start":
            self._start_mapper(message)
            return None
        if message.kind in ("tune", "tune_fetch"):
            if self.tuning is None:
                raise WireError(
                    f"{message.kind}: expected no such message, the server is not tuning; send a query"
                )
            if message.kind == "tune_fetch":
                return self.tuning.answer(message)
            self._check_latents(message, registration, ("image", "mask"))
            self.tuning.keep(message)
            return None
        return self._answer(message, registration)

    def latent_set(self, partition: str) -> ServerLatents:
        """What was uploaded for "train" or "val".

        Raises:
            WireError: nothing was uploaded.
        """
        uploads = self._uploads[partition]
        if not uploads.site:
            raise WireError(
                f"upload: expected latents for {partition!r}, got none; let the sites upload first"
            )
        join = {
            role: {s: torch.cat(zs) for s, zs in getattr(uploads, role).items()} for role in ("image", "mask")
        }
        return ServerLatents(self, join["image"], join["mask"], torch.cat(uploads.site))

    def to_frame(self, role: str, latents: Latents, site: Tensor) -> Latents:
        """Codes (or float32 at 32 bits) of several sites -> float32 in the server's frame; `site` int64 [N]."""
        bits = self._registrations[self.sites[0]].bits_up
        result = {}
        for scale, z in latents.items():
            matrices, offsets = self._switches("up", role, scale)
            if bits == 32:
                moved = torch.einsum("nij,njhw->nihw", matrices[site], z)
                result[scale] = moved if offsets is None else moved + offsets[site][:, :, None, None]
            else:
                result[scale] = ops.switch_dequantize(z, matrices, site, offsets, bits=bits)
        return result

    def from_frame(self, role: str, gradients: Latents, site: Tensor) -> Latents:
        """Gradients at latents in the server's frame -> at the latents as the sites sent them: A_k^T g."""
        return {
            scale: torch.einsum("nij,nihw->njhw", self._switches("up", role, scale)[0][site], g)
            for scale, g in gradients.items()
        }

    def _switches(self, way: str, role: str, scale: int) -> tuple[Tensor, Tensor | None]:
        """The sites' matrices [K, D, D] and offsets [K, D]; identities in mode "sites"."""
        key = (way, role, scale)
        if key not in self._stacked:
            matrices, offsets = [], []
            for name in self.sites:
                registration = self._registrations[name]
                dim = registration.shapes[role][scale][0]
                tensors = registration.message.tensors
                matrices.append(tensors.get(f"{way}/{role}/{scale}", torch.eye(dim)))
                offsets.append(tensors.get(f"{way}_offset/{role}/{scale}", torch.zeros(dim)))
            shift = torch.stack(offsets)
            self._stacked[key] = (torch.stack(matrices), shift if bool(shift.any()) else None)
        return self._stacked[key]

    def _register(self, message: wire.Message) -> None:
        registration = read_registration(message)
        self._check_registration(message, registration)
        known = self._registrations.get(message.sender)
        if known is None:
            self.sites.append(message.sender)
        elif self._has_uploads(message.sender) and not same_up(known, registration):
            raise WireError(
                f"register: expected the latents and switch matrices under which {message.sender!r} has uploaded, got"
                " others; raise the epoch to renew keys, or start a new server"
            )
        self._registrations[message.sender] = registration
        self._stacked.clear()

    def _has_uploads(self, name: str) -> bool:
        number = self.sites.index(name)
        return any(bool((part == number).any()) for up in self._uploads.values() for part in up.site)

    def _check_registration(self, message: wire.Message, registration: Registration) -> None:
        wanted = set()
        for role, scales in registration.shapes.items():
            for scale, (dim, _, _) in scales.items():
                names = [f"up/{role}/{scale}", *([f"down/{role}/{scale}"] if role == "mask" else [])]
                wanted |= set(names) if self.trust != "sites" else set()
                for name in names:
                    check_switch(message.tensors, name, dim)
        given = {name for name in message.tensors if "_offset/" not in name}
        stray = set(message.tensors) - given - {name.replace("/", "_offset/", 1) for name in wanted}
        if given != wanted or stray:
            given |= stray
            raise WireError(
                f"register: expected switch matrices {sorted(wanted)} in trust mode {self.trust!r},"
                f" got {sorted(given)}; set the same trust mode at sites and server"
            )
        for other in self._registrations.values():
            if other.message.sender != message.sender and not same_latents(other, registration):
                raise WireError(
                    f"register: expected the latents of {other.message.sender!r} ({other.latents}), got"
                    f" {registration.latents}; use the same codec settings at all sites"
                )

    def _check_latents(
        self, message: wire.Message, registration: Registration, roles: tuple[str, ...]
    ) -> int:
        counts = set()
        for role in roles:
            latents, shapes = message.role(role), registration.shapes[role]
            if set(latents) != set(shapes):
                raise WireError(
                    f"{message.kind}: expected {role} scales {sorted(shapes)}, got {sorted(latents)}"
                )
            for scale, z in latents.items():
                dim, height, width = shapes[scale]
                bits = registration.bits_up
                shape = (dim if bits == 32 else dim * bits // 8, height, width)
                dtype = torch.float32 if bits == 32 else torch.uint8
                if tuple(z.shape[1:]) != shape or z.dtype != dtype:
                    raise WireError(
                        f"{role}/{scale}: expected [N, {', '.join(map(str, shape))}] {dtype} as registered,"
                        f" got {list(z.shape)} {z.dtype}; register again"
                    )
                # One NaN among the targets would end the training of all sites.
                if bits == 32 and not bool(z.isfinite().all()):
                    raise WireError(
                        f"{role}/{scale}: expected finite latents, got NaN or infinity; check the site's codec"
                    )
                counts.add(len(z))
        if len(counts) != 1:
            raise WireError(f"{message.kind}: expected as many samples at every scale, got {sorted(counts)}")
        return counts.pop()

    def _keep_upload(self, message: wire.Message, registration: Registration) -> None:
        partition = message.fields.get("partition")
        if partition not in PARTITIONS:
            raise WireError(f"partition: expected one of {PARTITIONS}, got {partition!r}")
        count = self._check_latents(message, registration, ("image", "mask"))
        uploads = self._uploads[partition]
        for role in ("image", "mask"):
            for scale, z in message.role(role).items():
                getattr(uploads, role).setdefault(scale, []).append(z)
        uploads.site.append(torch.full((count,), self.sites.index(message.sender)))

    def _answer(self, message: wire.Message, registration: Registration) -> bytes:
        count = self._check_latents(message, registration, ("image",))
        if self.mapper is None:
            raise WireError("query: expected a trained mapper, the server has none yet; train it first")
        number = self.sites.index(message.sender)
        site = torch.full((count,), number)
        with torch.no_grad():
            found = map_latents(self.mapper, self.to_frame("image", message.role("image"), site), site)
        tensors = {}
        for scale, z in found.items():
            matrices, offsets = self._switches("down", "mask", scale)
            params = ops.KltParams(
                "haar",
                z.shape[1],
                matrix=matrices[number].contiguous(),
                offset=None if offsets is None else offsets[number].contiguous(),
            )
            bits = registration.bits_down
            tensors[f"mask/{scale}"] = (
                ops.klt(z, params, normalize=False)
                if bits == 32
                else ops.klt_quantize(z, params, bits=bits, normalize=False)
            )
        return wire.encode(wire.Message("reply", self.federation_id, "server", self.epoch, {}, tensors))

    def _start_mapper(self, message: wire.Message) -> None:
        # Any other time a site could put its own weights in place of what all have trained.
        if self.starting is None:
            raise WireError(
                "mapper_start: expected no such message, no mapper is about to be trained; send a query"
            )
        start_from_head(self.starting, message.tensors)

    def _keep_codec(self, message: wire.Message) -> None:
        number, images = message.fields.get("round"), message.fields.get("images")
        if not (is_count(number, 0) and is_count(images, 1)) or "sealed" not in message.tensors:
            raise WireError(
                "codec_round: expected a round, a count of images and sealed weights, got"
                f" round={number!r}, images={images!r}, tensors {sorted(message.tensors)}; use Site.seal_codec"
            )
        assert number is not None and images is not None
        if number != self._codec_round:
            self._codec_round, self._sealed = number, {}
        self._sealed[message.sender] = (float(images), message.tensors["sealed"])

    def _relay_codecs(self, message: wire.Message) -> bytes:
        number = message.fields.get("round")
        if number != self._codec_round or not self._sealed:
            raise WireError(
                f"codec_fetch: expected round {self._codec_round}, got {number}; send the round first"
            )
        fields = {"round": number, "images": {name: images for name, (images, _) in self._sealed.items()}}
        tensors = {f"sealed/{name}": blob for name, (_, blob) in self._sealed.items()}
        return wire.encode(
            wire.Message("codec_relay", self.federation_id, "server", self.epoch, fields, tensors)
        )
