"""Settings of runs that are done in a second, for tests of what surrounds the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppcmi_fast import FederationKey, SiteKey
from ppcmi_fast.federation.config import RunConfig

TINY: dict[str, Any] = {
    "size": 32,
    "threads": 1,
    "codec.rounds": 1,
    "codec.local_steps": 1,
    "mapper.steps": 2,
    "mapper.views": 1,
    "baselines.methods": [],
}


def tiny_config(data: Path, settings: dict[str, Any], *overrides: str) -> RunConfig:
    """A tiny run on a data set; `settings` by dotted names over TINY, `overrides` as of the command line."""
    lines = [f"{name}={json.dumps(value)}" for name, value in (TINY | settings).items()]
    return RunConfig.build({"data": str(data)}, [*lines, *overrides])


def same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every run the same keys: what codecs start from and how latents are rounded depends on them."""
    for kind in (SiteKey, FederationKey):
        monkeypatch.setattr(kind, "generate", lambda federation_id, kind=kind: kind(b"k" * 32, federation_id))


def interrupting(call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`call`, but for the `at`-th time, which is Ctrl-C."""
    calls = 0

    def broken(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return call(*arguments)

    return broken
