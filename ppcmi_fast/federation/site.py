"""A site: holds images, masks, keys and codec; what leaves it is bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppcmi_fast import ops, wire
from ppcmi_fast.codec import ImageCodec, MaskCodec
from ppcmi_fast.errors import ConfigError, WireError
from ppcmi_fast.federation.server import Trust
from ppcmi_fast.keys import FederationKey, SiteKey, switch_down, switch_up
from ppcmi_fast.sealing import seal_weights, unseal_weights

Latents = dict[int, Tensor]


class Site:
    """One hospital of a federation.

    Args:
        name: how the server knows it.
        site_key: its own secret.
        federation_key: the sites' common secret; needed for trust "federation" and for a shared codec.
        image_codec, mask_codec: its codecs; they may be trained after this.
        federation_id, epoch: as the server's.
        trust: what the server is handed, see `Server`.
        mixing: the site's own mixing, "hadamard" or "haar".
        folds: image scale -> fold.
        bits_up, bits_down: 2, 4, 8, or 32 for float32.

    Raises:
        ConfigError: trust "federation" without a federation key.
    """

    def __init__(
        self,
        name: str,
        site_key: SiteKey,
        federation_key: FederationKey | None,
        image_codec: ImageCodec,
        mask_codec: MaskCodec,
        *,
        federation_id: str,
        epoch: int = 0,
        trust: Trust = "federation",
        mixing: str = "hadamard",
        folds: dict[int, int] | None = None,
        bits_up: int = 4,
        bits_down: int = 4,
    ) -> None:
        if trust == "federation" and federation_key is None:
            raise ConfigError(
                'federation_key: expected a key for trust="federation", got none; give one or set trust'
            )
        self.name, self.federation_id, self.epoch, self.trust = name, federation_id, epoch, trust
        self.image_codec, self.mask_codec = image_codec, mask_codec
        self.bits_up, self.bits_down = bits_up, bits_down
        self._federation_key = federation_key
        self._params: dict[tuple[str, int], ops.KltParams] = {}
        self._frames: dict[tuple[str, int], ops.KltParams | None] = {}
        folds = folds or {}
        for role, dims in (("image", image_codec.latent_dims), ("mask", mask_codec.latent_dims)):
            for scale, channels in dims.items():
                fold = folds.get(scale, 1) if role == "image" else 1
                dim = channels * fold * fold
                self._params[role, scale] = site_key.klt_params(role, scale, dim, mixing, fold, epoch=epoch)
                self._frames[role, scale] = (
                    federation_key.klt_params(role, scale, dim, "haar", epoch=epoch)
                    if trust == "federation" and federation_key is not None
                    else None
                )

    def register(self, height: int, width: int) -> bytes:
        """Declare the latents of height x width images, and hand over the switch matrices of the trust mode."""
        shapes: dict[str, dict[int, list[int]]] = {"image": {}, "mask": {}}
        tensors: dict[str, Tensor] = {}
        for (role, scale), params in self._params.items():
            stride = scale * params.fold
            shapes[role][scale] = [params.dim, height // stride, width // stride]
            if self.trust == "sites":
                continue
            frame = self._frames[role, scale]
            switches = {"up": switch_up(params, frame)}
            if role == "mask":
                switches["down"] = switch_down(params, frame)
            for way, (matrix, offset) in switches.items():
                tensors[f"{way}/{role}/{scale}"] = matrix
                if offset is not None:
                    tensors[f"{way}_offset/{role}/{scale}"] = offset
        fields = {"shapes": shapes, "bits_up": self.bits_up, "bits_down": self.bits_down}
        return self._encode("register", fields, tensors)

    def upload(self, images: Tensor, masks: Tensor, partition: str) -> bytes:
        """Protected latents of images [N, 1, H, W] and their masks int64 [N, H, W], for "train" or "val"."""
        tensors = self._protect("image", self._encode_images(images))
        tensors |= self._protect("mask", self._encode_masks(masks))
        return self._encode("upload", {"partition": partition}, tensors)

    def query(self, images: Tensor) -> bytes:
        """Protected latents of images [N, 1, H, W], to be answered."""
        return self._encode("query", {}, self._protect("image", self._encode_images(images)))

    def open_reply(self, reply: bytes) -> Tensor:
        """The server's answer -> class scores [N, classes, H, W]; argmax is the class map.

        Raises:
            WireError: damaged, foreign, or not of this site's mask latents.
        """
        message = wire.decode(reply, self.federation_id, self.epoch, ("reply",))
        latents = {}
        for scale, z in message.role("mask").items():
            params = self._params.get(("mask", scale))
            if params is None:
                raise WireError(
                    f"reply: expected mask scales {sorted(self.mask_codec.latent_dims)}, got {scale}"
                )
            if self.bits_down == 32:
                latents[scale] = ops.klt(z, params, normalize=False, inverse=True)
            else:
                latents[scale] = ops.klt_dequantize(z, params, bits=self.bits_down)
        if set(latents) != set(self.mask_codec.latent_dims):
            raise WireError(
                f"reply: expected mask scales {sorted(self.mask_codec.latent_dims)}, got {sorted(latents)}"
            )
        with torch.no_grad():
            return self.mask_codec.decode(latents)

    def seal_codec(self, module: nn.Module, round_index: int, images: int) -> bytes:
        """The weights of `module` for the other sites, in half precision, sealed; `images` is their weight.

        Raises:
            ConfigError: the site has no federation key.
        """
        weights = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
        blob = seal_weights(
            self._sealing_key(), weights, epoch=self.epoch, context=_codec_context(round_index, self.name)
        )
        tensor = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        return self._encode("codec_round", {"round": round_index, "images": images}, {"sealed": tensor})

    def fetch_codecs(self, round_index: int) -> bytes:
        """Ask the server for the sealed weights of a round."""
        return self._encode("codec_fetch", {"round": round_index}, {})

    def average_codecs(self, module: nn.Module, relay: bytes, round_index: int) -> None:
        """Open every site's weights and load their mean, weighted by images, into `module`.

        Raises:
            WireError: damaged, of another round, or sealed by an outsider.
        """
        message = wire.decode(relay, self.federation_id, self.epoch, ("codec_relay",))
        shares: dict[str, float] = message.fields.get("images", {})
        if not shares or set(message.tensors) != {f"sealed/{name}" for name in shares}:
            raise WireError(
                f"codec_relay: expected sealed weights of {sorted(shares)}, got {sorted(message.tensors)}"
            )
        total = sum(shares.values())
        mean: dict[str, Any] = {}
        for name, share in shares.items():
            weights = unseal_weights(
                self._sealing_key(),
                message.tensors[f"sealed/{name}"].numpy().tobytes(),
                epoch=self.epoch,
                context=_codec_context(round_index, name),
            )
            for key, value in weights.items():
                mean[key] = mean.get(key, 0.0) + value.double() * (share / total)
        own = module.state_dict()
        module.load_state_dict({key: value.to(own[key].dtype) for key, value in mean.items()})

    def _sealing_key(self) -> FederationKey:
        if self._federation_key is None:
            raise ConfigError(
                'federation_key: expected a key to seal the codec with, got none; use codec.sharing="local"'
            )
        return self._federation_key

    def _encode(self, kind: str, fields: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
        return wire.encode(wire.Message(kind, self.federation_id, self.name, self.epoch, fields, tensors))

    @torch.no_grad()
    def _encode_images(self, images: Tensor) -> Latents:
        return self.image_codec.encode(images)

    @torch.no_grad()
    def _encode_masks(self, masks: Tensor) -> Latents:
        return self.mask_codec.encode(masks)

    def _protect(self, role: str, latents: Latents) -> dict[str, Tensor]:
        normalize = role == "image"
        protected = {}
        for scale, z in latents.items():
            params = self._params[role, scale]
            z = z.contiguous()
            protected[f"{role}/{scale}"] = (
                ops.klt(z, params, normalize=normalize)
                if self.bits_up == 32
                else ops.klt_quantize(z, params, bits=self.bits_up, normalize=normalize)
            )
        return protected


def _codec_context(round_index: int, sender: str) -> str:
    return f"codec|{round_index}|{sender}"
