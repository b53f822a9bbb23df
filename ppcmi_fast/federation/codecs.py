"""How the sites come by their codecs: rounds of sealed averaging, phantoms at one site, or each its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ppcmi_fast.codec import CodecLearner, ImageCodec, LinearMaskCodec, MaskAutoencoder, MaskCodec
from ppcmi_fast.codec.learner import NOISE
from ppcmi_fast.data.arrays import Arrays, load_arrays
from ppcmi_fast.data.augment import augmented_batch
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.data.readers import open_dataset
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.config import HEAD_BLOCKS, RunConfig
from ppcmi_fast.federation.site import Site
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.ops.codebook import rms_error
from ppcmi_fast.training import (
    Fit,
    FitSettings,
    FitState,
    autocast,
    choose_device,
    device_of,
    divide_work,
    load_checkpoint,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_step,
    optimizer_tensors,
    run_rounds,
    save_checkpoint,
    step_generator,
)

Progress = Callable[[int, dict[str, float]], None]
VALIDATE_ROUNDS = 5
PHANTOM_SUBJECTS = 24


@dataclass
class Participant:
    """A site with what it keeps at home: its data and what it trains."""

    site: Site
    learner: CodecLearner
    train: Arrays
    val: Arrays


def make_mask_codec(config: RunConfig, classes: int) -> MaskCodec:
    """The mask codec that the settings name."""
    if config.codec.mask == "linear":
        return LinearMaskCodec(classes, config.codec.mask_block, config.codec.mask_rank)
    return MaskAutoencoder(classes)


def make_image_codec(config: RunConfig) -> ImageCodec:
    """The image codec that the settings describe, untrained."""
    codec = config.codec
    return ImageCodec(codec.scales, codec.channels, codec.width, codec.blocks)


def latent_noise(config: RunConfig) -> float:
    """What the codec is trained to bear: the error of the queries' bits, and at least that of about 4."""
    return NOISE if config.bits_up == 32 else max(NOISE, rms_error(config.bits_up))


def make_learner(config: RunConfig, classes: int, seed: int) -> CodecLearner:
    """Codecs and segmentation head; what they start from is `Site.draw_weights`' to say, not the seed's."""
    torch.manual_seed(seed)
    image_codec = make_image_codec(config)
    mask_codec = make_mask_codec(config, classes)
    head = LatentMapper(
        {scale: (dim, scale) for scale, dim in image_codec.latent_dims.items()},
        {scale: (dim, scale) for scale, dim in mask_codec.latent_dims.items()},
        config.codec.head_width,
        blocks=HEAD_BLOCKS,
        attention=config.codec.head_attention,
    )
    learner = CodecLearner(
        image_codec,
        mask_codec,
        head,
        config.codec.reconstruction,
        latent_noise(config),
        each_image=config.codec.dice == "image",
    )
    device = choose_device(config.device)
    return learner.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def learner_loss(learner: CodecLearner, data: Arrays, batch: int, generator: torch.Generator) -> Tensor:
    """Loss of one augmented batch drawn from a site's images."""
    images, masks = augmented_batch(data, batch, generator)
    device = device_of(learner)
    images = images.contiguous(memory_format=torch.channels_last).to(device)
    with autocast(device):
        return learner.loss(images, masks.to(device), generator)


def work_of_sites(participants: list[Participant], config: RunConfig, each: int) -> list[int]:
    """How many of `each * sites` steps, or images of a step, are each site's; see `CodecConfig.work`."""
    # A codec of its own is trained by nobody else, whatever images its site has.
    equally = config.codec.work == "equal" or config.codec.sharing == "local"
    return divide_work(each, [len(p.train.images) for p in participants], equally=equally)


class CodecRounds:
    """Rounds of local steps at every site, each closed by a sealed exchange when the codec is shared.

    Validation happens at the sites, on their own images; only the figure leaves them.
    """

    def __init__(
        self,
        participants: list[Participant],
        channel: Channel,
        config: RunConfig,
        checkpoint: Path,
        score: Callable[[Participant], float],
    ) -> None:
        self.participants, self.channel, self.config = participants, channel, config
        self.checkpoint, self.score = checkpoint, score
        codec = config.codec
        self.local_steps = work_of_sites(participants, config, codec.local_steps)
        self.settings = [
            FitSettings(codec.rounds * steps, codec.learning_rate, seed=config.seed)
            for steps in self.local_steps
        ]
        self.optimizers = [
            make_optimizer(p.learner, s) for p, s in zip(participants, self.settings, strict=True)
        ]
        self.state = FitState()
        self.best: dict[str, dict[str, Tensor]] = {}
        self.shared = codec.sharing == "averaged"
        if checkpoint.exists():
            self._resume()
        self._earlier_traffic = dict(self.state.traffic)

    def _resume(self) -> None:
        groups, self.state = load_checkpoint(self.checkpoint)
        try:
            self._load(groups)
        except (KeyError, RuntimeError) as error:
            raise RunError(
                f"{self.checkpoint}: expected the codecs of these sites and classes, got others; put the data back, or"
                " use --overwrite"
            ) from error

    def _load(self, groups: dict[str, dict[str, Tensor]]) -> None:
        for participant, optimizer in zip(self.participants, self.optimizers, strict=True):
            name = participant.site.name
            source = self.participants[0].site.name if self.shared else name
            participant.learner.load_state_dict(groups[f"learner.{source}"])
            load_optimizer_tensors(optimizer, groups[f"optimizer.{name}"])
            if self.state.best_step:
                self.best[name] = groups[f"best.{source}"]

    def _save(self) -> None:
        groups = {}
        for participant, optimizer in zip(self.participants, self.optimizers, strict=True):
            groups[f"optimizer.{participant.site.name}"] = optimizer_tensors(optimizer)
        # Between rounds, sites that average have the same weights.
        for participant in self.participants[:1] if self.shared else self.participants:
            groups[f"learner.{participant.site.name}"] = participant.learner.state_dict()
            groups[f"best.{participant.site.name}"] = self.best.get(participant.site.name, {})
        self.state.traffic = codec_traffic(self.channel, self._earlier_traffic)
        save_checkpoint(self.checkpoint, groups, self.state)

    def _local_steps(self, round_index: int) -> float:
        losses = []
        for number, participant in enumerate(self.participants):
            participant.learner.train()
            for local in range(self.local_steps[number]):
                step = round_index * self.local_steps[number] + local
                generator = step_generator(self.config.seed * 1009 + number, step)
                loss = learner_loss(
                    participant.learner, participant.train, self.config.codec.batch, generator
                )
                optimizer_step(
                    participant.learner, self.optimizers[number], loss, self.settings[number], step
                )
                losses.append(loss.item())
        return sum(losses) / len(losses)

    def _validate(self) -> float:
        for participant in self.participants:
            participant.learner.eval()
        value = sum(self.score(p) for p in self.participants) / len(self.participants)
        if value > self.state.best_value:
            self.state.best_value, self.state.best_step = value, self.state.step
            self.best = {
                p.site.name: {k: v.detach().clone() for k, v in p.learner.state_dict().items()}
                for p in self.participants
            }
        return value

    def _round(self) -> dict[str, float]:
        """One round of local steps, exchange, and now and then validation."""
        state = self.state
        entry = {"loss": self._local_steps(state.step)}
        if self.shared:
            exchange_codecs(self.participants, self.channel, state.step)
        state.step += 1
        if state.step % VALIDATE_ROUNDS == 0 or state.step == self.config.codec.rounds:
            entry["val"] = self._validate()
        state.history.append({"step": float(state.step), **entry})
        return entry

    def run(self, progress: Progress) -> FitState:
        """Train all rounds that are still to do, then load the weights of the best validation."""
        state, rounds = self.state, self.config.codec.rounds
        run_rounds(state, rounds, self._round, self._save, progress)
        for participant in self.participants:
            participant.learner.load_state_dict(self.best[participant.site.name])
            participant.learner.eval()
        return state


def codec_traffic(channel: Channel, earlier: dict[str, int]) -> dict[str, int]:
    """Bytes of codec messages by kind: what went over the channel, and before an interruption."""
    kinds = ("codec_round", "codec_fetch", "codec_relay")
    return {kind: earlier.get(kind, 0) + channel.bytes_by_kind[kind] for kind in kinds}


def share_phantom_codec(
    participants: list[Participant],
    channel: Channel,
    config: RunConfig,
    checkpoint: Path,
    score: Callable[[Participant], float],
    progress: Progress,
) -> FitState:
    """The first site trains on synthetic images alone and sends the codec to the others, sealed."""
    codec, first = config.codec, participants[0]
    with tempfile.TemporaryDirectory() as scratch:
        phantoms = Path(scratch) / "phantoms"
        write_phantom(codec.phantom, phantoms, size=config.size, seed=config.seed, subjects=PHANTOM_SUBJECTS)
        dataset = open_dataset(phantoms)
        data = load_arrays(dataset, config.size)
    settings = FitSettings(
        codec.rounds * codec.local_steps * len(participants),
        codec.learning_rate,
        validate_every=VALIDATE_ROUNDS * codec.local_steps,
        seed=config.seed,
    )
    state = Fit(
        first.learner,
        lambda generator: learner_loss(first.learner, data, codec.batch, generator),
        settings,
        checkpoint=checkpoint,
        validate=lambda: score(first),
        progress=progress,
    ).run()
    exchange_codecs([first], channel, 0, receivers=participants)
    state.traffic = codec_traffic(channel, {})
    for participant in participants:
        participant.learner.eval()
    return state


def whole_learner(learner: CodecLearner) -> nn.Module:
    """All that a site trains."""
    return learner


def exchange_codecs(
    senders: list[Participant],
    channel: Channel,
    round_index: int,
    receivers: list[Participant] | None = None,
    part: Callable[[CodecLearner], nn.Module] = whole_learner,
) -> None:
    """One round: senders seal their weights, the server relays them, every receiver averages what it opens.

    `part` says which of a learner's weights are meant.
    """
    for participant in senders:
        module, images = part(participant.learner), len(participant.train.images)
        channel.send(participant.site.seal_codec(module, round_index, images))
    for participant in receivers or senders:
        relay = channel.send(participant.site.fetch_codecs(round_index))
        assert relay is not None
        participant.site.average_codecs(part(participant.learner), relay, round_index)
