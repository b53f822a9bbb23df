"""Settings of runs that are done in a second, for tests of what surrounds the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
