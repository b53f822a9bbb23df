"""Baselines in a run folder: what was trained is kept, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ppcmi_fast.baselines.base import Progress
from ppcmi_fast.errors import RunError
from ppcmi_fast.federation.progress import StageProgress
from ppcmi_fast.federation.runfolder import RunFolder, load_module, save_module
from ppcmi_fast.training import FitState

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class FolderStages:
    """See `baselines.base.Stages`."""

    folder: RunFolder
    console: Console

    def train(
        self, name: str, module: nn.Module, total: int, fit: Callable[[Path, Progress], FitState]
    ) -> dict[str, Any]:
        """See `baselines.base.Stages.train`."""
        path = self.folder.root / "baselines" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        if self.folder.done(name) is None:
            with StageProgress(self.console, name, total) as progress:
                state = fit(self.folder.checkpoint(name), progress.update)
            save_module(path, module)
            self.folder.finish(name, describe(state))
        load_module(path, module)
        facts = self.folder.done(name)
        if facts is None:
            raise RunError(
                f"{self.folder.root}: expected stage {name} in stages.json, found none; --overwrite"
            )
        return facts


def describe(state: FitState) -> dict[str, Any]:
    """What stages.json keeps of a finished stage."""
    return {
        "seconds": state.seconds,
        "steps": state.step,
        "best": state.best_value,
        "history": state.history,
        "traffic": state.traffic,
    }
