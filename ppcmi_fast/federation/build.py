"""Put a federation together from settings: keys, sites, channel, server and the untrained networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ppcmi_fast.codec import CodecLearner
from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.augment import augment
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import Participant, make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.runfolder import RunFolder
from ppcmi_fast.federation.server import Server
from ppcmi_fast.federation.site import Site
from ppcmi_fast.federation.views import in_views
from ppcmi_fast.keys import FederationKey, SiteKey
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.training import choose_device, step_generator

UPLOAD_BATCH = 64


@dataclass
class Federation:
    """Everything of a federation that runs in one process."""

    participants: list[Participant]
    server: Server
    channel: Channel
    mapper: LatentMapper

    def payload_per_image(self, images: Tensor, views: int = 1) -> dict[str, int]:
        """Bytes of one image [1, 1, H, W] on the wire: the whole query up, the whole reply down, of all its views."""
        query = self.participants[0].site.query(in_views(images, views))
        reply = self.server.receive(query)
        assert reply is not None
        return {"up": len(query), "down": len(reply)}


def needs_federation_key(config: RunConfig) -> bool:
    """For the server's frame in mode federation, and to seal a shared codec in every mode."""
    return config.trust == "federation" or config.codec.sharing != "local"


def draw_keys(config: RunConfig, folder: RunFolder, names: list[str]) -> None:
    """Draw and save the keys of a run that has none.

    A run with work in it keeps its keys: under a new one the mapper, trained in the old frame, would answer nonsense.
    """
    if folder.started:
        return
    kinds: dict[str, type[SiteKey | FederationKey]] = dict.fromkeys(names, SiteKey)
    if needs_federation_key(config):
        kinds["federation"] = FederationKey
    for name, kind in kinds.items():
        path = folder.keys / f"{name}.key"
        if not path.exists():
            kind.generate(config.federation_id).save(path)


def _key_file(folder: RunFolder, name: str) -> Path:
    path = folder.keys / f"{name}.key"
    if not path.exists():
        raise RunError(
            f"{path}: expected the key with which this run was started, found none; put it back, or use --overwrite"
        )
    return path


def make_site(config: RunConfig, folder: RunFolder, name: str, learner: CodecLearner) -> Site:
    """A site with the keys of the run folder.

    Raises:
        RunError: a key is missing.
        KeyFileError: a key file is damaged or readable by others.
    """
    shared = needs_federation_key(config)
    return Site(
        name,
        SiteKey.load(_key_file(folder, name), config.federation_id),
        FederationKey.load(_key_file(folder, "federation"), config.federation_id) if shared else None,
        learner.image_codec,
        learner.mask_codec,
        federation_id=config.federation_id,
        epoch=config.epoch,
        trust=config.trust,
        mixing=config.mixing,
        mask_mixing=config.mask_mixing,
        mask_weights=config.mask_weights,
        folds=dict(zip(config.codec.scales, config.folds, strict=True)),
        bits_up=config.bits_up,
        bits_down=config.bits_down,
    )


def make_mapper(config: RunConfig, learner: CodecLearner, sites: int) -> LatentMapper:
    """The untrained mapper for these codecs."""
    folds = dict(zip(config.codec.scales, config.folds, strict=True))
    torch.manual_seed(config.seed + 1)
    return LatentMapper(
        {s: (dim * folds[s] ** 2, s * folds[s]) for s, dim in learner.image_codec.latent_dims.items()},
        {s: (dim, s) for s, dim in learner.mask_codec.latent_dims.items()},
        config.mapper.width,
        config.mapper.blocks,
        sites=sites if config.trust == "sites" else 0,
        attention=config.mapper.attention,
    ).to(choose_device(config.device))


def build_federation(
    config: RunConfig,
    folder: RunFolder,
    train: dict[str, Arrays],
    val: dict[str, Arrays],
    classes: int,
    learners: dict[str, CodecLearner] | None = None,
) -> Federation:
    """Sites with their data, registered at a new server; untrained learners unless given."""
    server = Server(config.federation_id, config.epoch, config.trust)
    channel = Channel(server)
    participants = []
    for name in train:
        learner = learners[name] if learners else make_learner(config, classes, config.seed)
        site = make_site(config, folder, name, learner)
        if learners is None:
            site.draw_weights(learner)
        participants.append(Participant(site, learner, train[name], val[name]))
        channel.send(site.register(config.size, config.size))
    mapper = make_mapper(config, participants[0].learner, len(participants))
    return Federation(participants, server, channel, mapper)


def start_mapper(federation: Federation) -> None:
    """Let the untrained mapper start from the head that the sites share, sent by the first of them."""
    first, server = federation.participants[0], federation.server
    assert isinstance(first.learner.head, LatentMapper)
    server.starting = federation.mapper
    try:
        federation.channel.send(first.site.start_mapper(first.learner.head))
    finally:
        server.starting = None


def views_of(data: Arrays, views: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [N, 1, H, W] and masks int64 [N, H, W] as they are, then augmented, `views` times in all."""
    yield data.images, data.masks
    for view in range(1, views):
        yield augment(data.images, data.masks, step_generator(seed, -view), data.modality)


def upload_training_latents(federation: Federation, config: RunConfig) -> None:
    """Every site protects and uploads its training images (as they are, then augmented) and validation images."""
    for number, participant in enumerate(federation.participants):
        for images, masks in views_of(participant.train, config.mapper.views, config.seed * 1009 + number):
            _upload(federation.channel, participant.site, images, masks, "train")
        _upload(federation.channel, participant.site, participant.val.images, participant.val.masks, "val")


def _upload(channel: Channel, site: Site, images: Tensor, masks: Tensor, partition: str) -> None:
    for some_images, some_masks in zip(images.split(UPLOAD_BATCH), masks.split(UPLOAD_BATCH), strict=True):
        channel.send(site.upload(some_images, some_masks, partition))
