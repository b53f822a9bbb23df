"""Does a small network at the site, which sees image and answer, improve the answer?

    python experiments/lab/refinement.py runs/experiments/comparison_sunnybrook/ours/seed-0

It takes a finished run and asks the server about the sites' training images, each in several augmented copies. Every
site then trains a network of its own, or all of them one that they average; it begins as the identity. Mask codes keep
no more than their basis does, and the answer is a mean: a network that sees the image could sharpen both.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from restored import RestoredRun, command
from torch import Tensor, nn

from ppcmi_fast.codec.learner import soft_dice_loss
from ppcmi_fast.federation.build import views_of
from ppcmi_fast.federation.codecs import Participant
from ppcmi_fast.training import FitSettings, autocast, make_optimizer, optimizer_step, step_generator

WIDTH, BATCH, STEPS, AVERAGE_EVERY, VIEWS, RATE = 16, 8, 400, 20, 8, 2e-3
Asked = tuple[Tensor, Tensor, Tensor]


class Refiner(nn.Module):
    """Image [N, 1, H, W] and class probabilities [N, K, H, W] -> better ones: dilated convolutions, a residual."""

    def __init__(self, classes: int) -> None:
        super().__init__()

        def layer(inputs: int, dilation: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, WIDTH, 3, padding=dilation, dilation=dilation)
            return nn.Sequential(conv, nn.GroupNorm(4, WIDTH), nn.SiLU())

        self.read = layer(1 + classes, 1)
        self.wider = nn.ModuleList(layer(WIDTH, dilation) for dilation in (1, 2, 4))
        self.write = nn.Conv2d(WIDTH, classes, 1)
        nn.init.zeros_(self.write.weight)
        assert self.write.bias is not None
        nn.init.zeros_(self.write.bias)

    def forward(self, images: Tensor, answers: Tensor) -> Tensor:
        """Refine a batch."""
        x = self.read(torch.cat([2 * images - 1, answers], 1))
        for layer in self.wider:
            x = x + layer(x)
        probabilities: Tensor = (answers.clamp(1e-3, 1).log() + self.write(x)).softmax(1)
        return probabilities


def asked_in_training(run: RestoredRun, participant: Participant, number: int) -> Asked:
    """Images, masks and answers of a site's training images, the first view as they are."""
    seed = run.config.seed * 1009 + number
    views = [
        (images, masks, run.ask(participant, images))
        for images, masks in views_of(participant.train, VIEWS, seed)
    ]
    images, masks, answers = (torch.cat(part) for part in zip(*views, strict=True))
    return images, masks, answers


def train(run: RestoredRun, asked: dict[str, Asked], steps: int, *, shared: bool) -> dict[str, Refiner]:
    """Every site's network; with `shared` they are averaged by images, again and again."""
    torch.manual_seed(run.config.seed)
    first = Refiner(run.classes)
    networks = {name: Refiner(run.classes) for name in asked}
    for network in networks.values():
        network.load_state_dict(first.state_dict())
    settings = FitSettings(steps, RATE, seed=run.config.seed)
    optimizers = {name: make_optimizer(network, settings) for name, network in networks.items()}
    images = {p.site.name: len(p.train.images) for p in run.federation.participants}
    for step in range(steps):
        for number, (name, network) in enumerate(networks.items()):
            pictures, masks, answers = asked[name]
            generator = step_generator(run.config.seed * 1009 + number, step)
            index = torch.randint(len(pictures), (BATCH,), generator=generator)
            with autocast(torch.device("cpu")):
                found = network(pictures[index], answers[index])
            found = found.float()
            loss = F.nll_loss(found.clamp_min(1e-6).log(), masks[index]) + soft_dice_loss(found, masks[index])
            optimizer_step(network, optimizers[name], loss, settings, step)
        if shared and ((step + 1) % AVERAGE_EVERY == 0 or step + 1 == steps):
            total = sum(images.values())
            mean = {
                key: sum(networks[name].state_dict()[key] * (images[name] / total) for name in networks)
                for key in first.state_dict()
            }
            for network in networks.values():
                network.load_state_dict(mean)
    return networks


def measure(run: RestoredRun, steps: int) -> dict[str, Any]:
    """The answers as they are, and refined by networks of each site alone and of all."""
    members, parts = run.federation.participants, ("val", "test")
    base = {part: run.answers(part) for part in parts}
    answers, validation, seconds = (
        {"as answered": base["test"]},
        {"as answered": run.validation(base["val"])},
        {"as answered": 0.0},
    )
    asked = {p.site.name: asked_in_training(run, p, number) for number, p in enumerate(members)}
    for method, shared in (("each site alone", False), ("averaged", True)):
        started = time.perf_counter()
        networks = train(run, asked, steps, shared=shared)
        seconds[method] = time.perf_counter() - started
        with torch.no_grad():
            refined = {
                part: {
                    name: network(run.sites[name][part].images, base[part][name])
                    for name, network in networks.items()
                }
                for part in parts
            }
        answers[method], validation[method] = refined["test"], run.validation(refined["val"])
    return {
        method: entry | {"validation": validation[method], "seconds": seconds[method]}
        for method, entry in run.compared(answers, "as answered").items()
    }


if __name__ == "__main__":
    sys.exit(command(measure, __file__, __doc__, STEPS))
