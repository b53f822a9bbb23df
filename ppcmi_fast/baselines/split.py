"""U-shaped split learning (Vepakomma et al. 2018): the sites hold a U-Net's ends, the server its middle.

Sites take turns, and each hands the ends on to the next (Gupta and Raskar 2018). To pass activations and gradients over
the two cuts changes neither, so the network is trained as if it were whole, on one site's images at a time; what
travels is counted from the sizes at the cuts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppcmi_fast.baselines.base import Outcome, Progress, Workbench, count_parameters
from ppcmi_fast.baselines.unet import batch_loss, make_criterion, predict
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.training import Fit, FitState, device_of

FLOAT_BYTES = 4


def cut(net: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Head, body and tail of MONAI's U-Net: logits = tail(cat(h, body(h))) with h = head(x)."""
    parts: Any = net.model
    head, skip, tail = parts
    return head, skip.submodule, tail


def values_at_cuts(net: nn.Module, images: Tensor) -> int:
    """How many numbers cross the two cuts one way for these images; their gradients cross back."""
    head, body, _ = cut(net)
    with torch.no_grad():
        inside = head(images.to(device_of(net)))
        across: int = inside.numel() + body(inside).numel()
    return across


def split_learning(bench: Workbench) -> Outcome:
    """Rounds in which every site makes its steps in turn.

    Raises:
        ConfigError: an architecture that is not cut here.
    """
    if bench.architecture != "unet":
        raise ConfigError(
            f'baselines.architecture: expected "unet" for split_learning, got "{bench.architecture}"; it alone is cut'
        )
    net = bench.network()
    # Whose step it is, over one round.
    turns = [name for name, steps in bench.steps_of_sites().items() for _ in range(steps)]
    steps = bench.rounds * len(turns)
    criterion, made = make_criterion(), [0]

    def loss(generator: torch.Generator) -> Tensor:
        data = bench.sites[turns[made[0] % len(turns)]].train
        made[0] += 1
        return batch_loss(net, data, bench.batch, criterion, generator)

    def fit(checkpoint: Path, progress: Progress) -> FitState:
        def validate() -> float:
            return bench.validation_dice(lambda _, images: predict(net, images))

        training = Fit(
            net, loss, bench.settings(steps), checkpoint=checkpoint, validate=validate, progress=progress
        )
        made[0] = training.state.step
        state = training.run()
        state.traffic = traffic(bench, net, state.step)
        return state

    facts = bench.train("split_learning", net, steps, fit)
    maps = {name: predict(net, data.test.images) for name, data in bench.sites.items()}
    seen = facts["steps"] * bench.batch
    head, _, tail = cut(net)
    return Outcome(
        maps, seen, facts["seconds"], count_parameters(head, tail), facts["traffic"], facts["best"]
    )


def traffic(bench: Workbench, net: nn.Module, steps: int) -> dict[str, int]:
    """Bytes over the cuts, there and back, and of the ends that sites hand on."""
    images = next(iter(bench.sites.values())).train.images[:1]
    head, _, tail = cut(net)
    ends = sum(v.numel() * v.element_size() for end in (head, tail) for v in end.state_dict().values())
    handed_on = steps * len(bench.sites) // sum(bench.steps_of_sites().values())
    crossing = 2 * FLOAT_BYTES * bench.batch * values_at_cuts(net, images)
    return {"activations_and_gradients": steps * crossing, "weights": handed_on * ends}
