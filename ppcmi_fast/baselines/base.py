"""What every baseline is given, and what it gives: the same images, budget and augmentation for all."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ppcmi_fast.baselines.architectures import make_network
from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.metrics import dice_scores
from ppcmi_fast.training import FitSettings, FitState, divide_work

VALIDATIONS = 12
# Between the name of a stage and its learning rate: of a trial, and of the training at one of several that were tried.
TRIED, CHOSEN = "@", "="
_STAGE = re.compile(rf"(?P<name>.+?)((?P<mark>[{TRIED}{CHOSEN}])(?P<rate>\d+(\.\d+)?(e[+-]?\d+)?))?")

Progress = Callable[[int, dict[str, float]], None]


def split_stage(stage: str, tried: Container[str]) -> tuple[str, str, float | None]:
    """Name, mark and rate of a stage: of "fedavg@0.001" and of "unet_local.SITE", which has neither mark nor rate.

    Args:
        stage: as `Stages` keep it.
        tried: the methods that tried several rates. What ends like a rate with others is a site's name.
    """
    parts = _STAGE.fullmatch(stage)
    assert parts is not None
    if parts["rate"] is None or method_of(stage) not in tried:
        return stage, "", None
    return parts["name"], parts["mark"], float(parts["rate"])


def method_of(stage: str) -> str:
    """The method that a stage belongs to, or what else is trained in it."""
    return re.split(rf"[.{TRIED}{CHOSEN}]", stage, maxsplit=1)[0]


def trials_of(method: str) -> str:
    """What a method tried and what does not answer, by which metrics.json gives its time."""
    return f"{method} (rates tried)"


def same_rate(one: float | None, two: float | None) -> bool:
    """Whether two learning rates have one name in stages."""
    return one == two or (one is not None and two is not None and f"{one:g}" == f"{two:g}")


@dataclass(frozen=True)
class SiteData:
    """One site's images."""

    train: Arrays
    val: Arrays
    test: Arrays


class Stages(Protocol):
    """Where trained networks are kept, so that interrupted work resumes."""

    def train(
        self, name: str, module: nn.Module, total: int, fit: Callable[[Path, Progress], FitState]
    ) -> dict[str, Any]:
        """Load what was trained under this name into `module`, or train it and keep it.

        Args:
            name: of the stage, unique in a run; the first part up to a dot is the method's.
            module: ends with the trained weights.
            total: steps or rounds that progress counts up to.
            fit: trains `module`; gets the file to resume from and to write checkpoints to, and what to tell progress.

        Returns:
            `seconds`, `steps`, `best`, `history` and `traffic` (kind -> bytes) of the state that `fit` gave.
        """


@dataclass(frozen=True)
class Workbench:
    """What a method is trained with.

    Attributes:
        sites: by name.
        classes: with the background.
        images: how many images (with repetitions) the networks of a method may see in all, over all sites.
        batch: images a step.
        learning_rate: peak rate of AdamW.
        seed: fixes networks and draws.
        stages: see `Stages`.
        rounds: of federated methods.
        work: how their sites divide a round, "images", in proportion to these, or "equal".
        mu: weight of FedProx's proximal term.
        architecture: of the networks, see `architectures.make_network`.
        published_width: fraction of the published profile's channels.
        device: where the networks are trained.
        suffix: of the stages' names, by which trials and what was chosen are told from a training at a given rate.
    """

    sites: Mapping[str, SiteData]
    classes: int
    images: int
    batch: int
    learning_rate: float
    seed: int
    stages: Stages
    rounds: int = 40
    mu: float = 0.01
    architecture: str = "unet"
    published_width: float = 0.25
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    suffix: str = ""
    work: str = "images"

    def train(
        self, name: str, module: nn.Module, total: int, fit: Callable[[Path, Progress], FitState]
    ) -> dict[str, Any]:
        """`Stages.train` under this workbench's names."""
        return self.stages.train(name + self.suffix, module, total, fit)

    def steps_of_sites(self) -> dict[str, int]:
        """Steps that each site makes in a round of a federated method, so that all together see the budget."""
        each = max(1, self.images // (self.batch * self.rounds * len(self.sites)))
        images = [len(data.train.images) for data in self.sites.values()]
        return dict(zip(self.sites, divide_work(each, images, equally=self.work == "equal"), strict=True))

    def network(self) -> nn.Module:
        """A new network of the architecture, with the seed's first weights, where it is trained."""
        return make_network(self.architecture, self.classes, self.seed).to(self.device)

    def settings(self, steps: int) -> FitSettings:
        """Of one network trained for so many steps."""
        every = max(1, steps // VALIDATIONS)
        return FitSettings(steps, self.learning_rate, validate_every=every, seed=self.seed)

    def validation_dice(self, predict: Callable[[str, Tensor], Tensor]) -> float:
        """Mean over the sites of the validation Dice of `predict(site, images [N, 1, H, W])`, int64 [N, H, W]."""
        scores = [
            float(dice_scores(predict(name, data.val.images), data.val.masks, self.classes).mean())
            for name, data in self.sites.items()
        ]
        return float(np.mean(scores))


@dataclass(frozen=True)
class Outcome:
    """What a method came to.

    Attributes:
        maps: class maps int64 [N, H, W] of every site's test images.
        images_seen: over all sites, with repetitions.
        seconds: of training, over all sites.
        parameters: of what one site needs to segment.
        bytes_sent: kind -> bytes between sites and server over the whole training; empty where nothing travels.
        validation: best validation Dice, by which learning rates are chosen.
        learning_rate: with which it was trained.
        trial_images: seen besides, while the learning rate was chosen.
    """

    maps: dict[str, Tensor]
    images_seen: int
    seconds: float
    parameters: int
    bytes_sent: dict[str, int] = field(default_factory=dict)
    validation: float = 0.0
    learning_rate: float = 0.0
    trial_images: int = 0


def count_parameters(*modules: nn.Module) -> int:
    """Weights of all of them."""
    return sum(p.numel() for module in modules for p in module.parameters())
