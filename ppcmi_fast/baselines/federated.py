"""Federated averaging of a segmentation network: FedAvg, FedProx and FedBN, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ppcmi_fast.baselines.base import VALIDATIONS, Outcome, Progress, Workbench, count_parameters
from ppcmi_fast.baselines.unet import batch_loss, make_criterion, predict
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.training import (
    FitState,
    descend,
    load_checkpoint,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    run_rounds,
    save_checkpoint,
    step_generator,
    take_gradient,
)

# Networks of which FedBN trains the last.
FEDBN = ("unet", "unet_batch_norm")


def norm_keys(net: nn.Module) -> set[str]:
    """Names of the weights and statistics of batch norms, which FedBN keeps at the sites."""
    return {
        f"{name}.{key}"
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in module.state_dict()
    }


def average(states: Mapping[str, dict[str, Tensor]], shares: Mapping[str, float]) -> dict[str, Tensor]:
    """The mean of the sites' weights by their shares, which sum to 1; counters are the first site's."""
    mean: dict[str, Tensor] = {}
    for key, value in next(iter(states.values())).items():
        parts = [state[key] * shares[name] for name, state in states.items()]
        mean[key] = torch.stack(parts).sum(0) if value.is_floating_point() else value
    return mean


def pull_back(net: nn.Module, start: list[Tensor], mu: float) -> None:
    """Add the gradient of mu / 2 |w - start|^2 to those that are there (Li et al. 2020), without a graph for it."""
    for now, then in zip(net.parameters(), start, strict=True):
        if now.grad is not None:
            now.grad.add_(now.detach() - then, alpha=mu)


class Rounds:
    """Local steps at every site, then an average of what is shared (McMahan et al. 2017).

    Args:
        bench: images, budget and settings.
        nets: a network a site, all with the same first weights.
        mu: weight of the proximal term (Li et al. 2020), 0 for none.
        local: names of weights that stay at their site (Li et al. 2021).
        checkpoint: file to resume from and to write.
    """

    def __init__(
        self, bench: Workbench, nets: dict[str, nn.Module], mu: float, local: set[str], checkpoint: Path
    ) -> None:
        self.bench, self.nets, self.mu, self.checkpoint = bench, nets, mu, checkpoint
        first = next(iter(nets.values())).state_dict()
        self.shared = [key for key in first if key not in local]
        self.round_bytes = (
            2 * len(nets) * sum(first[k].numel() * first[k].element_size() for k in self.shared)
        )
        total = sum(len(data.train.images) for data in bench.sites.values())
        self.shares = {name: len(data.train.images) / total for name, data in bench.sites.items()}
        self.local_steps = bench.steps_of_sites()
        self.settings = {
            name: bench.settings(bench.rounds * steps) for name, steps in self.local_steps.items()
        }
        # Moments are kept over the rounds, as our own codec rounds keep them.
        self.optimizers = {name: make_optimizer(net, self.settings[name]) for name, net in nets.items()}
        self.criterion = make_criterion()
        self.state = FitState()
        self.best: dict[str, dict[str, Tensor]] = {}
        if checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        groups, self.state = load_checkpoint(self.checkpoint)
        for name, net in self.nets.items():
            net.load_state_dict(groups[f"net.{name}"])
            load_optimizer_tensors(self.optimizers[name], groups.get(f"optimizer.{name}", {}))
            if f"best.{name}" in groups:
                self.best[name] = groups[f"best.{name}"]

    def _save(self) -> None:
        groups = {f"net.{name}": net.state_dict() for name, net in self.nets.items()}
        groups |= {f"optimizer.{n}": optimizer_tensors(o) for n, o in self.optimizers.items()}
        groups |= {f"best.{name}": weights for name, weights in self.best.items()}
        save_checkpoint(self.checkpoint, groups, self.state)

    def _steps_at(self, number: int, name: str) -> float:
        net, data = self.nets[name], self.bench.sites[name].train
        start = [p.detach().clone() for p in net.parameters()] if self.mu else []
        net.train()
        total = 0.0
        for local in range(self.local_steps[name]):
            step = self.state.step * self.local_steps[name] + local
            generator = step_generator(self.bench.seed * 1009 + number, step)
            loss = batch_loss(net, data, self.bench.batch, self.criterion, generator)
            total += loss.item()
            optimizer = self.optimizers[name]
            take_gradient(optimizer, loss, step)
            if self.mu:
                pull_back(net, start, self.mu)
            descend(net, optimizer, self.settings[name], step)
        net.eval()
        return total / self.local_steps[name]

    def _round(self) -> dict[str, float]:
        losses = [self._steps_at(number, name) for number, name in enumerate(self.nets)]
        states = {name: net.state_dict() for name, net in self.nets.items()}
        mean = average({n: {k: s[k] for k in self.shared} for n, s in states.items()}, self.shares)
        for net in self.nets.values():
            net.load_state_dict(mean, strict=False)
        state = self.state
        state.step += 1
        state.traffic["weights"] = state.step * self.round_bytes
        entry = {"loss": sum(losses) / len(losses)}
        if state.step % max(1, self.bench.rounds // VALIDATIONS) == 0 or state.step == self.bench.rounds:
            entry["val"] = self._validate()
        state.history.append({"step": float(state.step), **entry})
        return entry

    def _validate(self) -> float:
        value = self.bench.validation_dice(lambda name, images: predict(self.nets[name], images))
        if value > self.state.best_value:
            self.state.best_value, self.state.best_step = value, self.state.step
            self.best = {
                name: {k: v.detach().clone() for k, v in net.state_dict().items()}
                for name, net in self.nets.items()
            }
        return value

    def run(self, progress: Progress) -> FitState:
        """All rounds that are still to do, then the weights of the best validation."""
        state = self.state
        run_rounds(state, self.bench.rounds, self._round, self._save, progress)
        for name, net in self.nets.items():
            net.load_state_dict(self.best[name])
        return state


def _federated(bench: Workbench, name: str, mu: float, *, keep_norms: bool) -> Outcome:
    if keep_norms and bench.architecture not in FEDBN:
        raise ConfigError(
            f'baselines.architecture: expected "unet" for fedbn, got "{bench.architecture}"; leave fedbn out'
        )
    # MONAI's instance norm has nothing to keep.
    one = replace(bench, architecture=FEDBN[-1]) if keep_norms else bench
    nets = {site: one.network() for site in bench.sites}
    local = norm_keys(next(iter(nets.values()))) if keep_norms else set()

    def fit(checkpoint: Path, progress: Progress) -> FitState:
        return Rounds(bench, nets, mu, local, checkpoint).run(progress)

    facts = bench.train(name, nn.ModuleList(nets.values()), bench.rounds, fit)
    with torch.no_grad():
        maps = {site: predict(nets[site].eval(), data.test.images) for site, data in bench.sites.items()}
    seen = facts["steps"] * sum(bench.steps_of_sites().values()) * bench.batch
    parameters = count_parameters(next(iter(nets.values())))
    return Outcome(maps, seen, facts["seconds"], parameters, facts["traffic"], facts["best"])


def fedavg(bench: Workbench) -> Outcome:
    """McMahan et al. 2017."""
    return _federated(bench, "fedavg", 0.0, keep_norms=False)


def fedprox(bench: Workbench) -> Outcome:
    """Li et al. 2020: the steps of a round are held near its start."""
    return _federated(bench, "fedprox", bench.mu, keep_norms=False)


def fedbn(bench: Workbench) -> Outcome:
    """Li et al. 2021: batch norms stay at their site."""
    return _federated(bench, "fedbn", 0.0, keep_norms=True)
