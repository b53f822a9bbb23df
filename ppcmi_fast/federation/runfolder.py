"""The folder of a run: what is where, and what has been done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.federation.config import STAGES_FILE, RunConfig, changed_settings, is_whole

OUR_STAGES: tuple[str, ...] = ("codec", "mapper", "tuning")
SPLIT_FILE = "split.json"
# Part -> site -> its subjects.
Parts: TypeAlias = dict[str, dict[str, list[str]]]
WRITTEN_FOLDERS = ("baselines", "checkpoints", "keys", "server", "sites")
WRITTEN_FILES = (
    "config.toml",
    "examples.npz",
    "history.json",
    "metrics.json",
    "report.html",
    "scores.csv",
    SPLIT_FILE,
    STAGES_FILE,
)


def has_results(run: Path) -> bool:
    """Whether the run in a folder has been measured, which is done last."""
    return (run / "metrics.json").is_file()


def noted_split(run: Path) -> Parts | None:
    """Who is in which part of the run in a folder; None where that cannot be told."""
    try:
        found: Parts = read_json(run / SPLIT_FILE)
    except RunError:
        return None
    return found


def moved_subjects(before: Parts, now: Parts, most: int = 3) -> str:
    """The first subjects that are not where they were, "site-0/patient3 from train to test"; "" where all are."""
    one, two = (
        {
            f"{site}/{subject}": part
            for part, sites in parts.items()
            for site in sites
            for subject in sites[site]
        }
        for parts in (before, now)
    )
    moved = [
        f"{name} from {one.get(name, 'nowhere')} to {two.get(name, 'nowhere')}"
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    ]
    return ", ".join(moved[:most]) + (f" and {len(moved) - most} more" if len(moved) > most else "")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a crash leaves the old file or the new one."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n")
    scratch.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunError: missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path}: expected a JSON file of a finished stage, got {error}; run with --overwrite"
        ) from None


class RunFolder:
    """Paths of a run, its settings, and the results of its finished stages.

    A stage that is done has a line in `stages.json`; a resumed run skips it. Its checkpoint, several times the size of
    what it trained, is deleted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config_path = root / "config.toml"
        self.checkpoints = root / "checkpoints"
        self.keys = root / "keys"
        self.server = root / "server"

    @classmethod
    def open(cls, root: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> RunFolder:
        """Start, resume or replace a run.

        Raises:
            RunError: the folder holds a run and neither flag is given, or holds other files, or the settings differ, or
                the networks of another version are still to be trained.
        """
        folder = cls(root)
        if resume and overwrite:
            raise RunError("--resume and --overwrite: expected at most one of them, got both")
        if root.exists() and not root.is_dir():
            raise RunError(f"{root}: expected a folder to write to, got a file; choose another --out")
        if folder.config_path.exists():
            folder._check_is_run()
            if overwrite:
                folder.remove()
            elif not resume:
                raise RunError(
                    f"{root}: already holds a run; use --resume to go on with it or --overwrite to replace it"
                )
            elif changed := changed_settings(RunConfig.load(folder.config_path), config):
                raise RunError(
                    f"{root}: the run was started with other settings than these ({'; '.join(changed)}); resume with"
                    f" those of {folder.config_path}, or use --overwrite"
                )
            elif folder.done("mapper") is None and not is_whole(folder.config_path, config):
                # What it did without them need not be what is the default now: a head whose first weights were public
                # would give the frame away.
                raise RunError(
                    f"{root}: was begun by a version that had fewer settings, and its networks are not trained; go on"
                    " with that version, or use --overwrite"
                )
        elif root.exists() and any(root.iterdir()):
            raise RunError(
                f"{root}: expected an empty folder or a run, got other files; choose another --out"
            )
        for path in (folder.checkpoints, folder.keys, folder.server):
            path.mkdir(parents=True, exist_ok=True)
        os.chmod(folder.keys, 0o700)
        if not folder.config_path.exists():
            folder.config_path.write_text(config.to_toml())
        # A crash may have come between a stage's line and the end of its checkpoint.
        for stage in folder.stages():
            folder.checkpoint(stage).unlink(missing_ok=True)
        return folder

    def _check_is_run(self) -> None:
        """Raise RunError when config.toml is somebody else's."""
        try:
            RunConfig.load(self.config_path)
        except ConfigError as error:
            raise RunError(
                f"{self.config_path}: expected the settings of a run, got {error}; choose another --out"
            ) from None

    def remove(self) -> None:
        """Delete what this program wrote here, and the folder where that was all."""
        for name in WRITTEN_FOLDERS:
            path = self.root / name
            # What cannot be removed must be an error: a checkpoint left behind would be resumed by the new run.
            if path.is_symlink():
                path.unlink()
            elif path.exists():
                shutil.rmtree(path)
        for name in WRITTEN_FILES:
            (self.root / name).unlink(missing_ok=True)
        if not any(self.root.iterdir()):
            self.root.rmdir()

    @property
    def started(self) -> bool:
        """Whether there is work that rests on this run's keys."""
        kept = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return kept or not self.stages().keys().isdisjoint(OUR_STAGES)

    def check_split(self, split: Parts) -> None:
        """Note who is in which part; a run that goes on must have the same subjects where they were.

        Raises:
            RunError: the data has other subjects, sites or parts than when the run was started.
        """
        path = self.root / SPLIT_FILE
        if path.exists() and (moved := moved_subjects(read_json(path), split)):
            raise RunError(
                f"{path}: expected the subjects with which this run was started where they were, got {moved}, so one"
                " already trained on could be tested on; put the data back, or use --overwrite"
            )
        write_json(path, split)

    def checkpoint(self, stage: str) -> Path:
        """The file that a stage under way resumes from."""
        return self.checkpoints / f"{stage}.safetensors"

    def site(self, name: str) -> Path:
        """The folder of one site's own files."""
        path = self.root / "sites" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def stages(self) -> dict[str, dict[str, Any]]:
        """What the finished stages reported, by name."""
        path = self.root / STAGES_FILE
        found: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
        return found

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage reported, or None."""
        return self.stages().get(stage)

    def finish(self, stage: str, result: dict[str, Any]) -> None:
        """Note a stage as finished, with what it reports. What it trained must be saved: its checkpoint is deleted."""
        write_json(self.root / STAGES_FILE, {**self.stages(), stage: result})
        self.checkpoint(stage).unlink(missing_ok=True)


def save_module(path: Path, module: nn.Module) -> None:
    """Write a module's weights as safetensors, atomically."""
    scratch = path.with_suffix(".tmp")
    save_file({k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}, scratch)
    scratch.replace(path)


def load_module(path: Path, module: nn.Module) -> None:
    """Read a module's weights.

    Raises:
        RunError: missing, damaged, or of another network.
    """
    try:
        state: Mapping[str, Tensor] = load_file(path)
        module.load_state_dict(state)
    except Exception as error:
        raise RunError(f"{path}: expected this network's weights, got {str(error).splitlines()[0]}") from None
    module.eval()
