"""A site: holds images, masks, keys and codec; what leaves it is bytes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ppcmi_fast import ops, wire
from ppcmi_fast.codec import MASK_WEIGHTS, ImageCodec, MaskCodec
from ppcmi_fast.errors import ConfigError, WireError
from ppcmi_fast.federation import start
from ppcmi_fast.federation.registration import BITS, Trust, check_trust
from ppcmi_fast.keys import FederationKey, SiteKey, switch_down, switch_up
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.sealing import seal_weights, unseal_weights
from ppcmi_fast.training import autocast, device_of

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
        mixing, mask_mixing: the site's own, of image latents and of mask codes, "hadamard" or "haar".
        mask_weights: what mask codes' means and other frequencies are multiplied by before they are protected, the same
            at all sites.
        folds: image scale -> fold.
        bits_up, bits_down: 2, 4, 8, or 32 for float32.

    Attributes:
        threshold: share of a class against the background from which on a pixel is of it, see `calibration`; None takes
            the likeliest class.

    Raises:
        ConfigError: another trust mode or width, weights that could not be taken back, a key of another kind or
            federation, or trust "federation" without a federation key.
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
        mask_mixing: str = "haar",
        mask_weights: tuple[float, float] = MASK_WEIGHTS,
        folds: dict[int, int] | None = None,
        bits_up: int = 4,
        bits_down: int = 4,
    ) -> None:
        # A mode misspelt must not fall through to "no frame": that would hand the server the inverse keys.
        check_trust(trust)
        if trust == "federation" and federation_key is None:
            raise ConfigError(
                'federation_key: expected a key for trust="federation", got none; give one or set trust'
            )
        _check_keys(site_key, federation_key, federation_id)
        for setting, bits in (("bits_up", bits_up), ("bits_down", bits_down)):
            if bits not in BITS:
                raise ConfigError(f"{setting}: expected one of {BITS}, got {bits!r}; correct the setting")
        self.name, self.federation_id, self.epoch, self.trust = name, federation_id, epoch, trust
        self.image_codec, self.mask_codec = image_codec, mask_codec
        self.bits_up, self.bits_down = bits_up, bits_down
        self.threshold: float | None = None
        if len(mask_weights) != 2 or not all(0 < weight < math.inf for weight in mask_weights):
            raise ConfigError(
                f"mask_weights: expected two finite numbers over 0, got {mask_weights}; correct the setting"
            )
        self._weights = mask_codec.entry_weights(*mask_weights)
        # What is said of them at registration: an autoencoder's codes have none.
        weighted = any(bool((weight != 1).any()) for weight in self._weights.values())
        self.mask_weights = mask_weights if weighted else (1.0, 1.0)
        self._federation_key = federation_key
        self._codec_key = federation_key or site_key
        self._sent: Latents = {}
        self._params: dict[tuple[str, int], ops.KltParams] = {}
        self._frames: dict[tuple[str, int], ops.KltParams | None] = {}
        folds = folds or {}
        for role, dims, mixed in (
            ("image", image_codec.latent_dims, mixing),
            ("mask", mask_codec.latent_dims, mask_mixing),
        ):
            for scale, channels in dims.items():
                fold = folds.get(scale, 1) if role == "image" else 1
                dim = channels * fold * fold
                self._params[role, scale] = site_key.klt_params(role, scale, dim, mixed, fold, epoch=epoch)
                self._frames[role, scale] = (
                    federation_key.klt_params(role, scale, dim, "haar", epoch=epoch)
                    if trust == "federation" and federation_key is not None
                    else None
                )

    def register(self, height: int, width: int) -> bytes:
        """Declare the latents of height x width images, and hand over the switch matrices of the trust mode.

        Raises:
            ConfigError: height or width is no multiple of a latent's stride.
        """
        shapes: dict[str, dict[int, list[int]]] = {"image": {}, "mask": {}}
        tensors: dict[str, Tensor] = {}
        for (role, scale), params in self._params.items():
            stride = scale * params.fold
            if height < stride or width < stride or height % stride or width % stride:
                raise ConfigError(
                    f"height, width: expected positive multiples of {stride} for {role}/{scale}, got"
                    f" {height} x {width}; choose another size"
                )
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
        fields = {
            "shapes": shapes,
            "bits_up": self.bits_up,
            "bits_down": self.bits_down,
            "mask_weights": list(self.mask_weights),
        }
        return self._encode("register", fields, tensors)

    def draw_weights(self, module: nn.Module) -> None:
        """Give a fresh network first weights from the federation's key, or from the site's own where there is none."""
        start.draw_weights(module, self._codec_key.derive(f"{start.VERSION}|{self.epoch}"))

    def start_mapper(self, head: LatentMapper) -> bytes:
        """The segmentation head, turned into the server's frame: what its mapper may start from.

        Raises:
            ConfigError: in trust mode "sites", which has no common frame, or with folded latents, which the head does
                not read.
        """
        folds = {scale: params.fold for (role, scale), params in self._params.items() if role == "image"}
        if self.trust == "sites" or any(fold != 1 for fold in folds.values()):
            raise ConfigError(
                f'mapper.start="head": expected a common frame and no folds, got trust="{self.trust}", folds {folds};'
                ' use mapper.start="nothing"'
            )
        weights = start.head_in_frame(head, self._frames, self._weights)
        return self._encode("mapper_start", {}, {f"{start.PREFIX}{k}": v for k, v in weights.items()})

    def upload(self, images: Tensor, masks: Tensor, partition: str) -> bytes:
        """Protected latents of images [N, 1, H, W] and their masks int64 [N, H, W], for "train" or "val"."""
        tensors = self._protect("image", self._encode_images(images))
        tensors |= self._protect("mask", self._encode_masks(masks))
        return self._encode("upload", {"partition": partition}, tensors)

    def query(self, images: Tensor) -> bytes:
        """Protected latents of images [N, 1, H, W], to be answered."""
        return self._encode("query", {}, self._protect("image", self._encode_images(images)))

    def tune(self, images: Tensor, masks: Tensor, step: int) -> bytes:
        """As `upload`, for one step of split fine-tuning; what `descend_from` needs is kept here.

        Args:
            images: [N, 1, H, W].
            masks: int64 [N, H, W].
            step: counts the steps of the tuning, the same at all sites.
        """
        device = device_of(self.image_codec)
        with autocast(device):
            latents = self.image_codec.encode(images.to(device))
        # Keys stay with the CPU, and so does what they are applied to.
        latents = {scale: z.float().cpu() for scale, z in latents.items()}
        self._sent = {
            scale: ops.klt(z.contiguous(), self._params["image", scale]) for scale, z in latents.items()
        }
        tensors = self._protect("image", {scale: z.detach() for scale, z in latents.items()})
        tensors |= self._protect("mask", self._encode_masks(masks))
        return self._encode("tune", {"step": step}, tensors)

    def fetch_gradient(self, step: int) -> bytes:
        """Ask the server for the gradient at what `tune` sent."""
        return self._encode("tune_fetch", {"step": step}, {})

    def descend_from(self, reply: bytes, step: int) -> None:
        """Carry the server's gradient at the protected latents back into the image codec's parameters.

        The rounding to codes is passed over: a code stands for the latent that it was made from.

        Raises:
            WireError: damaged, of another step, or not of what was sent.
        """
        message = wire.decode(reply, self.federation_id, self.epoch, ("gradient",))
        gradients, scales = message.role("image"), message.fields.get("scales")
        wanted = {scale: list(z.shape) for scale, z in self._sent.items()}
        got = {scale: list(g.shape) for scale, g in gradients.items()}
        if message.fields.get("step") != step or got != wanted or not isinstance(scales, dict):
            raise WireError(
                f"gradient: expected that of step {step} at {wanted}, got step {message.fields.get('step')} at {got};"
                " fetch it again"
            )
        factors: list[Any] = [scales.get(str(scale)) for scale in self._sent]
        numbers = all(type(factor) in (int, float) for factor in factors)
        values = (
            [gradients[s].float() * f for s, f in zip(self._sent, factors, strict=True)] if numbers else []
        )
        if not values or not all(bool(value.isfinite().all()) for value in values):
            raise WireError(
                "gradient: expected finite numbers, got others; the server's training has diverged"
            )
        sent, self._sent = list(self._sent.values()), {}
        torch.autograd.backward(sent, values)

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
            self._check_reply(scale, z, params.dim)
            if self.bits_down == 32:
                found = ops.klt(z, params, normalize=False, inverse=True)
            else:
                found = ops.klt_dequantize(z, params, bits=self.bits_down)
            latents[scale] = found / self._weights[scale]
        if set(latents) != set(self.mask_codec.latent_dims):
            raise WireError(
                f"reply: expected mask scales {sorted(self.mask_codec.latent_dims)}, got {sorted(latents)}"
            )
        # Scales of several pictures, or of pictures of several sizes, cannot be decoded together.
        pictures = {(len(z), scale * z.shape[2], scale * z.shape[3]) for scale, z in latents.items()}
        if len(pictures) != 1:
            raise WireError(
                f"reply: expected all scales of the same images, got [N, H, W] = {sorted(pictures)}; ask again"
            )
        device = device_of(self.image_codec)
        with torch.no_grad():
            return self.mask_codec.decode({scale: z.to(device) for scale, z in latents.items()}).cpu()

    def _check_reply(self, scale: int, z: Tensor, dim: int) -> None:
        floats = self.bits_down == 32
        channels = dim if floats else dim * self.bits_down // 8
        dtype = torch.float32 if floats else torch.uint8
        if z.shape[1] != channels or z.dtype != dtype or 0 in z.shape[2:]:
            raise WireError(
                f"reply: expected mask/{scale} as {dtype} [N, {channels}, h, w] at {self.bits_down} bits, got"
                f" {z.dtype} {list(z.shape)}; register again with these bits"
            )
        if floats and not bool(z.isfinite().all()):
            raise WireError(f"reply: expected finite latents in mask/{scale}, got NaN or infinity; ask again")

    def seal_codec(self, module: nn.Module, round_index: int, images: int) -> bytes:
        """The weights of `module` for the other sites, in half precision, sealed; `images` is their weight.

        Raises:
            ConfigError: the site has no federation key.
        """
        weights = {
            k: (v.half() if v.is_floating_point() else v).cpu() for k, v in module.state_dict().items()
        }
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
            WireError: damaged, of another round, sealed by an outsider, or of another codec; nothing is loaded then.
        """
        message = wire.decode(relay, self.federation_id, self.epoch, ("codec_relay",))
        shares = _read_shares(message)
        if set(message.tensors) != {f"sealed/{name}" for name in shares}:
            raise WireError(
                f"codec_relay: expected sealed weights of {sorted(shares)}, got {sorted(message.tensors)}"
            )
        total = sum(shares.values())
        mean: dict[str, Any] = {}
        own = module.state_dict()
        for name, share in shares.items():
            weights = unseal_weights(
                self._sealing_key(),
                message.tensors[f"sealed/{name}"].numpy().tobytes(),
                epoch=self.epoch,
                context=_codec_context(round_index, name),
            )
            _check_weights(name, weights, own)
            for key, value in weights.items():
                mean[key] = mean.get(key, 0.0) + value.double() * (share / total)
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
        latents = self.image_codec.encode(images.to(device_of(self.image_codec)))
        return {scale: z.cpu() for scale, z in latents.items()}

    @torch.no_grad()
    def _encode_masks(self, masks: Tensor) -> Latents:
        # The linear mask codec has no weights: it lies where the image codec does.
        latents = self.mask_codec.encode(masks.to(device_of(self.image_codec)))
        return {scale: z.cpu() * self._weights[scale] for scale, z in latents.items()}

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


def _check_keys(site_key: SiteKey, federation_key: FederationKey | None, federation_id: str) -> None:
    """A site's key is its own, the federation's is common: swapped, every site would hold the other's secret."""
    for name, key, kind in (
        ("site_key", site_key, SiteKey),
        ("federation_key", federation_key, FederationKey),
    ):
        if key is None and name == "federation_key":
            continue
        if not isinstance(key, kind):
            raise ConfigError(
                f"{name}: expected a {kind.__name__}, got {type(key).__name__}; load the right key file"
            )
        if key.federation_id != federation_id:
            raise ConfigError(
                f"{name}: expected a key of federation {federation_id!r}, got one of {key.federation_id!r}; load the"
                " right key file"
            )


def _read_shares(message: wire.Message) -> dict[str, float]:
    """How many images stand behind each site's weights."""
    shares = message.fields.get("images")
    usable = isinstance(shares, dict) and all(
        type(v) in (int, float) and math.isfinite(v) and v > 0 for v in shares.values()
    )
    if not usable or not shares:
        raise WireError(
            f"codec_relay: expected a positive count of images for each site, got {str(shares)[:80]}; fetch again"
        )
    return {name: float(count) for name, count in shares.items()}


def _check_weights(name: str, weights: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """A site's weights fit the codec here and are finite; else one site would spoil the mean of all."""
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
        odd = sorted(set(weights) ^ set(own))[:3] or "other shapes"
        raise WireError(
            f"codec_relay: expected {name}'s weights to be of the codec here, got {odd}; use the same codec settings at"
            " all sites"
        )
    if not all(bool(v.isfinite().all()) for v in weights.values()):
        raise WireError(
            f"codec_relay: expected finite weights of {name!r}, got NaN or infinity in half precision; that site's"
            " training has diverged"
        )
