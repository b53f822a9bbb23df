"""Make the runs of an experiment: each once, interrupted ones go on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppcmi_fast.errors import RunError
from ppcmi_fast.experiments.plan import Plan, PlannedRun, data_folder, planned_runs
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import RunFolder, read_json, write_json
from ppcmi_fast.report import write_report

if TYPE_CHECKING:
    from rich.console import Console

NETWORK_FOLDERS = ("keys", "server", "sites", "baselines")


def is_finished(folder: Path, config: RunConfig) -> bool:
    """Whether this run is done.

    Raises:
        RunError: a run of other settings is.
    """
    if not (folder / "metrics.json").is_file():
        return False
    if RunConfig.load(folder / "config.toml") != config:
        raise RunError(
            f"{folder}: holds a finished run of other settings than the experiment has now; move it away, or choose"
            " another --out"
        )
    return True


def take_networks(sources: Sequence[Path], target: Path, config: RunConfig) -> None:
    """Begin a run with the networks, keys and split of finished ones.

    Args:
        sources: runs of the same networks, each with baselines of its own.
        target: folder of the run.
        config: its settings.

    Raises:
        RunError: a source is not finished.
    """
    for source in sources:
        if not (source / "metrics.json").is_file():
            raise RunError(f"{source}: expected a finished run to take networks from; run its variant first")
    folder = RunFolder.open(target, config, resume=target.exists(), overwrite=False)
    stages: dict[str, dict[str, object]] = {}
    for source in sources:
        for name in NETWORK_FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        stages |= read_json(source / "stages.json")
    shutil.copyfile(sources[0] / "split.json", target / "split.json")
    write_json(folder.root / "stages.json", {**folder.stages(), **stages})


def run_experiment(
    plan: Plan,
    out: Path,
    *,
    smoke: bool = False,
    only: str = "",
    max_minutes: float = 0.0,
    console: Console | None = None,
    tell: Callable[[str], None] = print,
) -> bool:
    """Make what is not made yet.

    Args:
        plan: the experiment.
        out: its folder.
        smoke: tiny runs on phantoms, to see that all of it works.
        only: the one variant to run; "" runs all.
        max_minutes: stop then, with what is in hand saved; 0 goes on to the end.
        console: where progress is shown.
        tell: gets a line a run.

    Returns:
        Whether all of it is done.

    Raises:
        PpcmiError: bad settings or data, or finished runs of other settings.
        KeyboardInterrupt: by the user; the same call goes on.
    """
    runs = planned_runs(plan, data_folder(plan, out, smoke=smoke), smoke=smoke)
    known = sorted({run.variant for run in runs})
    if only and only not in known:
        raise RunError(f"--only: expected one of {', '.join(known)}, got {only!r}")
    waiting = [
        run for run in runs if only in ("", run.variant) and not is_finished(out / run.folder, run.config)
    ]
    tell(f"{len(runs)} runs, {len(waiting)} to do")
    deadline = _Deadline(max_minutes)
    try:
        for run in waiting:
            if deadline.passed:
                tell("time is up; the same command goes on")
                return False
            tell(f"{run.variant}, seed {run.seed}")
            _make(run, out, console)
    except KeyboardInterrupt:
        if not deadline.passed:
            raise
        tell("time is up, what was in hand is saved; the same command goes on")
        return False
    finally:
        deadline.cancel()
    return True


def _make(run: PlannedRun, out: Path, console: Console | None) -> None:
    folder = out / run.folder
    if run.networks_from:
        sources = [out / name / f"seed-{run.seed}" for name in run.networks_from]
        take_networks(sources, folder, run.config)
    federate(run.config, folder, resume=(folder / "config.toml").is_file(), console=console)
    write_report(folder)


class _Deadline:
    """Interrupts the process, as Ctrl-C would, when the time is up: every stage saves itself then."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._timer = (
            threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT)) if minutes else None
        )
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
