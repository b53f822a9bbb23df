"""Networks on another device than keys, wire and data: nothing meets across them, nothing changes by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import same_keys, tiny_config
from torch import nn
from two_devices import CPU, CUDA, two_devices

from ppcmi_fast import training
from ppcmi_fast.data.phantom import write_phantom
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.run import federate
from ppcmi_fast.training import choose_device, device_of


def test_the_second_device_bites() -> None:
    with two_devices() as marks:
        net, x = nn.Linear(3, 2).to(CUDA), torch.rand(4, 3)
        assert device_of(net) == CUDA and x.device == CPU
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            net(x)
        y = net(x.to(CUDA))
        with pytest.raises(TypeError, match="numpy"):
            y.detach().numpy()
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            y + torch.rand(4, 2)
        leaf = torch.rand(4, 3, requires_grad=True)
        net(leaf.to(CUDA)).cpu().sum().backward()
        assert leaf.grad is not None and leaf.grad.device == CPU
        assert net.weight.grad is not None and net.weight.grad.device == CUDA
        assert marks.moves > 3


def test_a_device_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r'device: expected a CUDA device for "cuda", found none'):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == CUDA and choose_device("cpu") == CPU
    assert device_of(nn.Identity()) == CPU


def run(tmp_path: Path, name: str, *settings: str) -> dict[str, Any]:
    values = {
        "tuning.rounds": 1,
        "tuning.local_steps": 1,
        "baselines.images": 32,
        "baselines.batch": 4,
        "baselines.rounds": 1,
        "baselines.methods": ["unet_centralised", "unet_local", "fedprox", "split_learning", "published"],
    }
    return federate(tiny_config(tmp_path / "data", values, *settings), tmp_path / name)


@pytest.mark.parametrize(
    "setting",
    [
        'trust="federation"',
        pytest.param('codec.mask="autoencoder"', marks=pytest.mark.slow),
        pytest.param("late_sites=['site-2']", marks=pytest.mark.slow),
    ],
)
def test_a_whole_run_keeps_its_devices_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    write_phantom("cardiac", tmp_path / "data", subjects=3, sites=3, slices=1, size=32)
    monkeypatch.setattr(training, "half_precision", lambda: False)
    same_keys(monkeypatch)
    run(tmp_path, "plain", setting, 'device="cpu"')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # There is no autocast of a device that is none.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: _Nothing())
    with two_devices() as marks:
        moved = run(tmp_path, "moved", setting, 'device="cuda"')
    assert marks.moves > 100
    assert moved["environment"]["training_device"] == "cuda"
    one, two = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("plain", "moved"))
    # To the last digits.
    for stage in ("codec", "unet_centralised", "fedprox", "split_learning"):
        losses = [[entry["loss"] for entry in history[stage]] for history in (one, two)]
        assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-4), stage


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
