"""Split fine-tuning: the server's squared error goes back through the protected latents into the sites' encoders.

The server sees what it saw before, protected latents and protected mask codes, batch after batch; sites see gradients
at their own latents, in their own frame. Neither image, mask, key nor encoder leaves a site unsealed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ppcmi_fast import wire
from ppcmi_fast.codec import CodecLearner
from ppcmi_fast.data.augment import augmented_batch
from ppcmi_fast.errors import RunError, WireError
from ppcmi_fast.federation.channel import Channel
from ppcmi_fast.federation.codecs import Participant, Progress, exchange_codecs, work_of_sites
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.server import Server
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.mapper.training import map_latents, squared_error
from ppcmi_fast.training import (
    FitSettings,
    FitState,
    autocast,
    descend,
    device_of,
    load_checkpoint,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_step,
    optimizer_tensors,
    run_rounds,
    save_checkpoint,
    step_generator,
)

VALIDATE_ROUNDS = 5
KINDS = ("tune", "tune_fetch", "gradient", "query", "reply", "codec_round", "codec_fetch", "codec_relay")


class MapperTuning:
    """The server's part: a step of the mapper on the latents of all sites, and their gradients for each.

    Args:
        server: whose mapper is trained.
        settings: of the mapper's optimizer.
        balance: see `mapper.training.position_weights`.
    """

    def __init__(self, server: Server, settings: FitSettings, balance: float = 0.0) -> None:
        if server.mapper is None:
            raise RunError("tuning: expected a trained mapper, the server has none yet; train it first")
        self.server, self.settings, self.mapper = server, settings, server.mapper
        self.balance = balance
        self.optimizer = make_optimizer(self.mapper, settings)
        self.step = 0
        self.loss = 0.0
        self._waiting: dict[str, wire.Message] = {}
        self._answers: dict[str, bytes] = {}

    def keep(self, message: wire.Message) -> None:
        """Note one site's latents of the step.

        Raises:
            WireError: of another step.
        """
        if message.fields.get("step") != self.step:
            raise WireError(
                f"tune: expected step {self.step}, got {message.fields.get('step')}; go on from there"
            )
        self._waiting[message.sender] = message

    def answer(self, message: wire.Message) -> bytes:
        """The gradient for one site; the first to ask, once all have sent, starts the step.

        Raises:
            WireError: a site has not sent yet, or the step is another.
        """
        wanted = message.fields.get("step")
        if wanted == self.step:
            missing = sorted(set(self.server.sites) - set(self._waiting))
            if missing:
                raise WireError(
                    f"tune_fetch: expected latents of every site first, none of {missing}; wait for them"
                )
            self._make_step()
        if wanted != self.step - 1 or message.sender not in self._answers:
            raise WireError(f"tune_fetch: expected step {self.step}, got {wanted}; go on from there")
        return self._answers[message.sender]

    def _make_step(self) -> None:
        server, names = self.server, list(self._waiting)
        counts = [len(next(iter(self._waiting[name].role("image").values()))) for name in names]
        site = torch.cat(
            [torch.full((n,), server.sites.index(name)) for n, name in zip(counts, names, strict=True)]
        )
        inputs = {scale: z.requires_grad_() for scale, z in self._joined("image", site).items()}
        targets = self._joined("mask", site)
        self.mapper.train()
        with autocast(device_of(self.mapper)):
            guess = map_latents(self.mapper, inputs, site)
        loss = squared_error(guess, targets, self.balance)
        optimizer_step(self.mapper, self.optimizer, loss, self.settings, self.step)
        self.mapper.eval()
        self.loss = loss.item()
        frame = {scale: z.grad for scale, z in inputs.items() if z.grad is not None}
        gradients = server.from_frame("image", frame, site)
        parts = {scale: g.split(counts) for scale, g in gradients.items()}
        # A site's gradient is that of the mean over its own batch.
        self._answers = {
            name: self._encode({s: g[number] * (sum(counts) / counts[number]) for s, g in parts.items()})
            for number, name in enumerate(names)
        }
        self._waiting = {}
        self.step += 1

    def _joined(self, role: str, site: Tensor) -> dict[int, Tensor]:
        messages = [message.role(role) for message in self._waiting.values()]
        joined = {scale: torch.cat([m[scale] for m in messages]) for scale in messages[0]}
        return self.server.to_frame(role, joined, site)

    def _encode(self, gradients: dict[int, Tensor]) -> bytes:
        # Half precision reaches down to 6e-8 only, and gradients are small: they travel at unit RMS.
        scales = {scale: max(float(g.square().mean().sqrt()), 1e-30) for scale, g in gradients.items()}
        tensors = {f"image/{scale}": (g / scales[scale]).half() for scale, g in gradients.items()}
        fields = {"step": self.step, "scales": {str(scale): value for scale, value in scales.items()}}
        server = self.server
        return wire.encode(
            wire.Message("gradient", server.federation_id, "server", server.epoch, fields, tensors)
        )


def encoder_of(learner: CodecLearner) -> nn.Module:
    """What is tuned of a learner; its decoder and head stay as they were."""
    return learner.image_codec.encoder


class TuningRounds:
    """Rounds of steps that all sites make together, each round closed by a sealed average of the encoders.

    Args:
        participants: the sites, with trained codecs.
        channel: to a server with a trained mapper.
        config: see `TuningConfig`.
        checkpoint: file to resume from and to write.
        score: a site's validation figure, higher is better, of encoder and mapper together.
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
        tuning = config.tuning
        self.batches = work_of_sites(participants, config, tuning.batch)
        steps = tuning.rounds * tuning.local_steps
        self.settings = FitSettings(steps, tuning.learning_rate, seed=config.seed)
        mapper_settings = FitSettings(
            steps, tuning.mapper_learning_rate, config.mapper.weight_decay, seed=config.seed
        )
        self.server_side = MapperTuning(channel.server, mapper_settings, config.mapper.balance)
        channel.server.tuning = self.server_side
        self.encoders = [encoder_of(p.learner) for p in participants]
        self.optimizers = [make_optimizer(encoder, self.settings) for encoder in self.encoders]
        self.shared = config.codec.sharing != "local"
        self.state = FitState()
        self.best: dict[str, dict[str, Tensor]] = {}
        self._before = dict(channel.bytes_by_kind)
        if checkpoint.exists():
            self._resume()
        self._earlier = dict(self.state.traffic)

    @property
    def mapper(self) -> LatentMapper:
        """The server's."""
        return self.server_side.mapper

    def _modules(self) -> dict[str, nn.Module]:
        """All that is trained, by the name that checkpoints give it."""
        encoders = {
            f"encoder.{p.site.name}": e for p, e in zip(self.participants, self.encoders, strict=True)
        }
        return {"mapper": self.mapper, **encoders}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        own = {f"optimizer.{p.site.name}": o for p, o in zip(self.participants, self.optimizers, strict=True)}
        return {"optimizer": self.server_side.optimizer, **own}

    def _resume(self) -> None:
        groups, self.state = load_checkpoint(self.checkpoint)
        try:
            for name, module in self._modules().items():
                module.load_state_dict(groups[name])
                if f"best.{name}" in groups:
                    self.best[name] = groups[f"best.{name}"]
            for name, optimizer in self._optimizers().items():
                load_optimizer_tensors(optimizer, groups.get(name, {}))
        except (KeyError, RuntimeError) as error:
            raise RunError(
                f"{self.checkpoint}: expected the networks of these sites, got others; put the data back, or use"
                " --overwrite"
            ) from error
        self.server_side.step = self.state.step * self.config.tuning.local_steps

    def _save(self) -> None:
        groups = {name: module.state_dict() for name, module in self._modules().items()}
        groups |= {name: optimizer_tensors(optimizer) for name, optimizer in self._optimizers().items()}
        groups |= {f"best.{name}": weights for name, weights in self.best.items()}
        save_checkpoint(self.checkpoint, groups, self.state)

    def _traffic(self) -> dict[str, int]:
        """Bytes of the tuning by kind of message, those before an interruption among them."""
        now = self.channel.bytes_by_kind
        return {k: self._earlier.get(k, 0) + now[k] - self._before.get(k, 0) for k in KINDS}

    def _step(self, step: int) -> None:
        """Every site sends a batch, the server makes its step, every site makes its own."""
        for number, participant in enumerate(self.participants):
            generator = step_generator(self.config.seed * 2003 + number, step)
            images, masks = augmented_batch(participant.train, self.batches[number], generator)
            images = images.contiguous(memory_format=torch.channels_last)
            self.channel.send(participant.site.tune(images, masks, step))
        for participant, encoder, optimizer in zip(
            self.participants, self.encoders, self.optimizers, strict=True
        ):
            reply = self.channel.send(participant.site.fetch_gradient(step))
            assert reply is not None
            optimizer.zero_grad(set_to_none=True)
            participant.site.descend_from(reply, step)
            descend(encoder, optimizer, self.settings, step)

    def _round(self) -> dict[str, float]:
        state, steps = self.state, self.config.tuning.local_steps
        losses = []
        for participant in self.participants:
            participant.learner.train()
        for local in range(steps):
            self._step(state.step * steps + local)
            losses.append(self.server_side.loss)
        for participant in self.participants:
            participant.learner.eval()
        if self.shared:
            number = self.config.codec.rounds + state.step
            exchange_codecs(self.participants, self.channel, number, part=encoder_of)
        state.step += 1
        entry = {"loss": sum(losses) / len(losses)}
        if state.step % VALIDATE_ROUNDS == 0 or state.step == self.config.tuning.rounds:
            entry["val"] = self._validate()
        state.traffic = self._traffic()
        entry["bytes"] = float(sum(state.traffic.values()))
        state.history.append({"step": float(state.step), **entry})
        return entry

    def _validate(self) -> float:
        value = sum(self.score(p) for p in self.participants) / len(self.participants)
        if value > self.state.best_value:
            self.state.best_value, self.state.best_step = value, self.state.step
            self.best = {
                name: {k: v.detach().clone() for k, v in module.state_dict().items()}
                for name, module in self._modules().items()
            }
        return value

    def run(self, progress: Progress) -> FitState:
        """All rounds still to do, then the weights of the best validation; those before the first count, too."""
        state, rounds = self.state, self.config.tuning.rounds
        if not state.history:
            state.history.append({"step": 0.0, "val": self._validate(), "bytes": 0.0})
        run_rounds(state, rounds, self._round, self._save, progress)
        for name, module in self._modules().items():
            module.load_state_dict(self.best[name])
        self.mapper.eval()
        self.channel.server.tuning = None
        return state
