"""One training loop for every network of the package: checkpoints, exact resume, early stopping, progress.

The random numbers of a step are a function of (seed, step) alone, so a run that was interrupted and resumed
makes the same steps as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.interrupt import DeferredInterrupt

_GOLDEN = 0x9E3779B97F4A7C15
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class FitSettings:
    """How one network is trained.

    Attributes:
        steps: optimizer steps in all.
        learning_rate: peak rate of AdamW; linear warm-up over the first 5 % of the steps, then a cosine to zero.
        weight_decay: decoupled weight decay.
        validate_every: steps between two validations.
        patience: validations without a new best before training stops; 0 never stops early.
        seed: fixes the random numbers of every step.
        constant: keep the peak rate throughout, without warm-up or decay.
    """

    steps: int
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    validate_every: int = 100
    patience: int = 0
    seed: int = 0
    constant: bool = False


@dataclass
class FitState:
    """What has been reached so far; travels in the checkpoint beside the tensors."""

    step: int = 0
    best_value: float = -math.inf
    best_step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: bool = False
    traffic: dict[str, int] = field(default_factory=dict)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random generator of one step, a function of (seed, step) alone."""
    generator = torch.Generator()
    generator.manual_seed(((seed + 1) * _GOLDEN + step * 0xD1B54A32D192ED03) & 0x7FFFFFFFFFFFFFFF)
    return generator


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then half a cosine down to zero; in 0..1."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def half_precision() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; networks then train under autocast, at twice the speed."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def trains_in_bfloat16(device: torch.device) -> bool:
    """Whether networks on this device train under autocast; a GPU always does."""
    return device.type != "cpu" or half_precision()


def autocast(device: torch.device) -> torch.autocast:
    """The precision in which every network of the package trains on a device, ours and the baselines alike."""
    return torch.autocast(device.type, torch.bfloat16, enabled=trains_in_bfloat16(device))


def choose_device(name: str) -> torch.device:
    """The device of a setting "cpu", "cuda" or "auto", the GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError('device: expected a CUDA device for "cuda", found none; set device="cpu"')
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where a network lies; one without weights is taken to lie on the CPU."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def divide_work(each: int, images: Sequence[int], *, equally: bool) -> list[int]:
    """How much of `each` times as many as there are sites is each site's: alike, or in proportion to its images."""
    return [each] * len(images) if equally else apportion(each * len(images), images)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers of sum `total` in proportion to positive weights, none under 1 (method of Sainte-Lague).

    Raises:
        ValueError: `total` is less than there are weights.
    """
    if total < len(weights):
        raise ValueError(f"total: expected at least {len(weights)}, one for each weight, got {total}")
    shares = [1] * len(weights)
    while sum(shares) < total:
        shares[max(range(len(weights)), key=lambda n: weights[n] / (shares[n] + 0.5))] += 1
    return shares


def make_optimizer(module: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    """AdamW without weight decay on vectors (norms and biases)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def optimizer_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, settings: FitSettings, step: int
) -> None:
    """One step along the gradient of a loss, as `descend` makes it.

    Raises:
        RunError: the loss is not finite.
    """
    take_gradient(optimizer, loss, step)
    descend(module, optimizer, settings, step)


def take_gradient(optimizer: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
    """Replace the gradients of what an optimizer trains by those of a loss.

    Raises:
        RunError: the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise RunError(
            f"loss: expected a finite number at step {step}, got {loss.item()}; lower learning_rate and resume"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()


def descend(module: nn.Module, optimizer: torch.optim.Optimizer, settings: FitSettings, step: int) -> None:
    """One step along the gradients that are there, clipped to norm 1, at the scheduled rate."""
    for group in optimizer.param_groups:
        factor = 1.0 if settings.constant else learning_rate_factor(step, settings.steps)
        group["lr"] = settings.learning_rate * factor
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten AdamW's state to named tensors, for safetensors."""
    return {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors` into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    full = optimizer.state_dict()
    full["state"] = state
    optimizer.load_state_dict(full)


def save_checkpoint(path: Path, groups: dict[str, dict[str, Tensor]], state: FitState) -> None:
    """Write named groups of tensors and the state, so that a crash leaves the old file or the new one."""
    flat = {
        f"{group}/{name}": t.detach().contiguous() for group, ts in groups.items() for name, t in ts.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    save_file({k: v.clone() for k, v in flat.items()}, scratch, metadata={"state": json.dumps(asdict(state))})
    scratch.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], FitState]:
    """Read what `save_checkpoint` wrote.

    Raises:
        RunError: the file is damaged.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                group, name = key.split("/", 1)
                groups.setdefault(group, {})[name] = file.get_tensor(key)
        return groups, FitState(**json.loads(metadata["state"]))
    except Exception as error:
        raise RunError(
            f"{path}: expected a checkpoint of this program, got a damaged file ({error}); delete it"
        ) from error


class Fit:
    """Train one module; `run` can be interrupted at any step and resumed from the checkpoint.

    Args:
        module: what is trained; ends with the weights of its best validation.
        loss: called with the step's generator, returns a scalar.
        settings: see `FitSettings`.
        checkpoint: file to resume from and to write; None keeps nothing.
        validate: returns a figure, higher is better; None keeps the last weights.
        progress: called with the number of steps done and the newest history entry.
        start_counts: whether the weights it begins with may be the best, because they were trained before.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[torch.Generator], Tensor],
        settings: FitSettings,
        *,
        checkpoint: Path | None = None,
        validate: Callable[[], float] | None = None,
        progress: Callable[[int, dict[str, float]], None] | None = None,
        start_counts: bool = False,
    ) -> None:
        self.module, self.loss, self.settings = module, loss, settings
        self.start_counts = start_counts
        self.checkpoint, self.validate, self.progress = checkpoint, validate, progress
        self.state = FitState()
        self.optimizer = make_optimizer(module, settings)
        self.best: dict[str, Tensor] = {}
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        groups, self.state = load_checkpoint(checkpoint)
        try:
            self.module.load_state_dict(groups["module"])
        except (KeyError, RuntimeError) as error:
            raise RunError(f"{checkpoint}: expected the weights of this network; use --overwrite") from error
        self.best = groups.get("best", {})
        load_optimizer_tensors(self.optimizer, groups.get("optimizer", {}))

    def save(self) -> None:
        """Write the checkpoint, if there is a file for it."""
        if self.checkpoint is not None:
            groups = {
                "module": self.module.state_dict(),
                "optimizer": optimizer_tensors(self.optimizer),
                "best": self.best,
            }
            save_checkpoint(self.checkpoint, groups, self.state)

    def _validate(self) -> float:
        assert self.validate is not None
        self.module.eval()
        with torch.no_grad():
            value = self.validate()
        self.module.train()
        if value > self.state.best_value:
            self.state.best_value, self.state.best_step = value, self.state.step
            self.best = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        return value

    def _due(self) -> bool:
        step, history = self.state.step, self.state.history
        at_end = step % self.settings.validate_every == 0 or step == self.settings.steps
        return step > 0 and at_end and (not history or history[-1]["step"] != step)

    def _close_interval(self) -> None:
        """Validate, note and save what the steps since the last time came to."""
        state = self.state
        entry = {"step": float(state.step), "loss": state.loss_sum / max(1, state.loss_count)}
        if self.validate is not None:
            entry["val"] = self._validate()
            waited = (state.step - state.best_step) // self.settings.validate_every
            state.stopped = 0 < self.settings.patience <= waited
        state.loss_sum, state.loss_count = 0.0, 0
        state.history.append(entry)
        self.save()

    def _step(self) -> None:
        loss = self.loss(step_generator(self.settings.seed, self.state.step))
        optimizer_step(self.module, self.optimizer, loss, self.settings, self.state.step)
        self.state.loss_sum += loss.item()
        self.state.loss_count += 1
        self.state.step += 1

    def run(self) -> FitState:
        """Train to the end (or to early stopping) and load the best weights.

        Raises:
            KeyboardInterrupt: after the step in hand, when it is saved.
        """
        state = self.state
        started = time.perf_counter() - state.seconds
        self.module.train()
        if self.start_counts and self.validate is not None and not state.history:
            state.history.append({"step": 0.0, "val": self._validate()})
        with DeferredInterrupt() as interrupt:
            while True:
                state.seconds = time.perf_counter() - started
                if self._due():
                    self._close_interval()
                if interrupt.requested:
                    self.save()
                    interrupt.stop()
                if state.step >= self.settings.steps or state.stopped:
                    break
                self._step()
                if self.progress is not None:
                    self.progress(state.step, state.history[-1] if state.history else {})
        if self.best:
            self.module.load_state_dict(self.best)
        self.module.eval()
        return state


def run_rounds(
    state: FitState,
    rounds: int,
    make_round: Callable[[], dict[str, float]],
    save: Callable[[], None],
    progress: Callable[[int, dict[str, float]], None],
) -> None:
    """Make the rounds that are still to do; now and then, at the end and when interrupted, what was reached is saved.

    Args:
        state: `step` counts the rounds, and `make_round` raises it.
        rounds: in all.
        make_round: gives the newest entry of the history.
        save: writes the checkpoint.
        progress: called with the number of rounds done and the newest entry.

    Raises:
        KeyboardInterrupt: after the round in hand, when it is saved.
    """
    started, saved = time.perf_counter() - state.seconds, time.perf_counter()
    with DeferredInterrupt() as interrupt:
        while state.step < rounds:
            entry = make_round()
            state.seconds = time.perf_counter() - started
            late = time.perf_counter() - saved > CHECKPOINT_SECONDS
            if late or interrupt.requested or state.step == rounds:
                save()
                saved = time.perf_counter()
            progress(state.step, entry)
            if interrupt.requested:
                interrupt.stop()
