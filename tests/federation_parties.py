"""Sites, keys and pictures with which the tests of the federation's messages play, and what an object holds."""

from __future__ import annotations

import hashlib
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ppcmi_fast import FederationKey, ImageCodec, LinearMaskCodec, SiteKey
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.registration import Trust
from ppcmi_fast.federation.server import Server
from ppcmi_fast.federation.site import Site

SIZE, COUNT = 32, 3
NAMES = ("a", "b", "c")
# Digests, not counting bytes: a run of 0, 1, 2 ... could be found by chance.
FEDERATION_SECRET = hashlib.sha256(b"federation").digest()
SITE_SECRETS = {name: hashlib.sha256(name.encode()).digest() for name in NAMES}


class FakeImageCodec(nn.Module):
    """Two strided convolutions with random weights."""

    latent_dims = {4: 8, 8: 16}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fine = nn.Conv2d(1, 8, 4, 4)
        self.coarse = nn.Conv2d(8, 16, 2, 2)

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        z = {4: self.fine(images)}
        z[8] = self.coarse(z[4])
        return {s: v * torch.rsqrt(v.square().mean(1, keepdim=True) + 1e-12) for s, v in z.items()}


def make_site(name: str, kind: type[Site] = Site, **settings: Any) -> Site:
    keys: dict[str, Any] = {
        "site_key": SiteKey(SITE_SECRETS[name], "fed"),
        "federation_key": FederationKey(FEDERATION_SECRET, "fed"),
    }
    codecs = {"image_codec": cast(ImageCodec, FakeImageCodec()), "mask_codec": LinearMaskCodec(2, 8, 16)}
    arguments: dict[str, Any] = (
        {"federation_id": "fed", "bits_up": 8, "bits_down": 8} | keys | codecs | settings
    )
    return kind(name, **arguments)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(COUNT, 1, SIZE, SIZE, generator=generator)
    masks = (torch.rand(COUNT, SIZE, SIZE, generator=generator) > 0.5).long()
    masks[:, 8:20, 10:26] = 1
    return images, masks


class Spy(nn.Module):
    """A mapper that keeps what it is given and answers what it was told."""

    def __init__(self, answer: dict[int, Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.given: list[dict[int, Tensor]] = []

    def forward(self, latents: dict[int, Tensor], site: Tensor) -> dict[int, Tensor]:
        self.given.append(latents)
        return self.answer


def connect(sites: list[Site], trust: Trust = "federation") -> Channel:
    channel = Channel(Server("fed", 0, trust), record=True)
    for site in sites:
        channel.send(site.register(SIZE, SIZE))
    return channel


def reached(root: Any) -> list[Any]:
    """Every tensor, array and piece of text or bytes that can be reached from an object.

    Classes and modules are left out: every process has those. Closures, defaults and bound objects are not.
    """
    leaves, seen, waiting = [], set(), [root]
    alive = []  # ids are those of living objects only
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (type, ModuleType)):
            continue
        seen.add(id(value))
        alive.append(value)
        if isinstance(value, (Tensor, np.ndarray, bytes, bytearray, memoryview, str)):
            leaves.append(value)
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, FunctionType):
            cells = value.__closure__ or ()
            waiting += [c.cell_contents for c in cells] + [value.__defaults__, value.__kwdefaults__]
        elif isinstance(value, MethodType):
            waiting += [value.__self__, value.__func__]
        elif isinstance(value, partial):
            waiting += [value.func, value.args, value.keywords]
        elif hasattr(value, "__iter__") and not isinstance(value, (Tensor, np.ndarray, str, bytes)):
            waiting += list(value)
        if isinstance(value, Tensor):
            waiting.append(value.grad)
        waiting.append(getattr(value, "__dict__", None))
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                waiting.append(getattr(value, slot, None))
    return leaves
