"""The training loop: exact resume, early stopping, best weights, damaged checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppcmi_fast.errors import RunError
from ppcmi_fast.interrupt import DeferredInterrupt
from ppcmi_fast.training import Fit, FitSettings, learning_rate_factor, load_checkpoint, step_generator


def make_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(net: nn.Module) -> Callable[[torch.Generator], Tensor]:
    def loss(generator: torch.Generator) -> Tensor:
        x = torch.randn(16, 4, generator=generator)
        value: Tensor = (net(x) - x.sum(1, keepdim=True)).square().mean()
        return value

    return loss


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_training_reduces_the_loss() -> None:
    net = make_net()
    state = Fit(net, loss_of(net), FitSettings(800, 1e-2, validate_every=50)).run()
    assert state.history[-1]["loss"] < 0.2 * state.history[0]["loss"]
    assert not net.training


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_resumed_run_makes_the_same_weights(tmp_path: Path, asked: signal.Signals) -> None:
    before = signal.getsignal(asked)
    settings = FitSettings(40, 1e-2, validate_every=10)
    whole = make_net()
    Fit(whole, loss_of(whole), settings).run()

    broken = make_net()
    base = loss_of(broken)
    calls = 0

    def interrupted(generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 17:
            signal.raise_signal(asked)
        return base(generator)

    path = tmp_path / "fit.safetensors"
    with pytest.raises(KeyboardInterrupt):
        Fit(broken, interrupted, settings, checkpoint=path).run()
    assert load_checkpoint(path)[1].step == 17
    assert signal.getsignal(asked) is before

    fresh = make_net()
    Fit(fresh, loss_of(fresh), settings, checkpoint=path).run()
    torch.testing.assert_close(weights(fresh), weights(whole), rtol=0, atol=0)


def crash_at(call: int) -> Callable[[], None]:
    """Raise KeyboardInterrupt at this call, counted from 1; 0 never."""
    calls = itertools.count(1)

    def tick() -> None:
        if next(calls) == call:
            raise KeyboardInterrupt

    return tick


@pytest.mark.parametrize(("loss_call", "validation_call"), [(17, 0), (0, 3)])
def test_a_crash_inside_a_step_or_a_validation_resumes_to_the_same_weights(
    tmp_path: Path, loss_call: int, validation_call: int
) -> None:
    def attempt(path: Path, loss_call: int, validation_call: int) -> Tensor:
        net = make_net()
        base, in_loss, in_validation = loss_of(net), crash_at(loss_call), crash_at(validation_call)

        def loss(generator: torch.Generator) -> Tensor:
            in_loss()
            return base(generator)

        def validate() -> float:
            in_validation()
            return -weights(net).square().sum().item()

        settings = FitSettings(40, 1e-2, validate_every=10)
        with contextlib.suppress(KeyboardInterrupt):
            Fit(net, loss, settings, checkpoint=path, validate=validate).run()
        return weights(net)

    whole = attempt(tmp_path / "whole.safetensors", 0, 0)
    broken = attempt(tmp_path / "broken.safetensors", loss_call, validation_call)
    assert not torch.equal(broken, whole)
    resumed = attempt(tmp_path / "broken.safetensors", 0, 0)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_batch_system_may_ask_twice() -> None:
    with DeferredInterrupt() as interrupt:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested


def test_best_weights_are_kept_and_patience_stops() -> None:
    net = make_net()
    values = iter([0.1, 0.9, 0.3, 0.2, 0.1, 0.0])
    seen: list[Tensor] = []

    def validate() -> float:
        seen.append(weights(net))
        return next(values)

    state = Fit(net, loss_of(net), FitSettings(60, validate_every=10, patience=2), validate=validate).run()
    assert (state.best_step, state.step, state.stopped) == (20, 40, True)
    torch.testing.assert_close(weights(net), seen[1], rtol=0, atol=0)


def test_loss_that_is_not_finite_names_the_step() -> None:
    net = make_net()
    with pytest.raises(RunError, match=r"finite number at step 0, got nan.*learning_rate"):
        Fit(net, lambda g: net(torch.randn(4, 4, generator=g)).mean() * float("nan"), FitSettings(3)).run()


def test_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    net = make_net()
    Fit(net, loss_of(net), FitSettings(10, validate_every=10), checkpoint=path).run()
    other = nn.Linear(4, 1)
    with pytest.raises(RunError, match="weights of this network"):
        Fit(other, loss_of(other), FitSettings(10), checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match="damaged"):
        Fit(net, loss_of(net), FitSettings(10), checkpoint=path)


def test_step_generators_differ_by_seed_and_step() -> None:
    draws = {
        torch.rand(1, generator=step_generator(seed, step)).item() for seed in range(4) for step in range(50)
    }
    assert len(draws) == 200


def test_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2) and max(factors) == pytest.approx(1.0) and factors[-1] < 1e-3
    assert factors[5:] == sorted(factors[5:], reverse=True)


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_ignores_a_signal_goes_on_ignoring_it(ignored: signal.Signals) -> None:
    (other,) = {signal.SIGINT, signal.SIGTERM} - {ignored}
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        with DeferredInterrupt() as interrupt:
            signal.raise_signal(ignored)
            assert not interrupt.requested
            signal.raise_signal(other)
            assert interrupt.requested
        assert signal.getsignal(ignored) is signal.SIG_IGN
    finally:
        signal.signal(ignored, before)


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with DeferredInterrupt():
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) is before
