"""Make the runs of an experiment: each once, interrupted ones go on."""

from __future__ import annotations

import fnmatch
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.experiments.draws import Draws
from ppcmi_fast.experiments.plan import Plan, PlannedRun, data_folder, planned_runs
from ppcmi_fast.experiments.reuse import begin_with_known, check_finished
from ppcmi_fast.federation.config import RunConfig, changed_settings, is_whole
from ppcmi_fast.federation.run import federate
from ppcmi_fast.federation.runfolder import RunFolder, has_results, moved_subjects, noted_split
from ppcmi_fast.report import write_report

if TYPE_CHECKING:
    from rich.console import Console


def is_finished(folder: Path, config: RunConfig, draws: Draws, *, overwrite: bool = False) -> bool:
    """Whether this run is done.

    Raises:
        RunError: a run of other settings or subjects is, or has begun, and `overwrite` is not given.
    """
    if not (folder / "config.toml").is_file():
        return False
    difference = _difference(folder, config, draws)
    if not difference:
        return has_results(folder)
    if overwrite:
        return False
    raise RunError(
        f"{folder}: holds a run of {difference}; replace it with --overwrite, choose another --out, or put back what"
        " has changed"
    )


def _difference(folder: Path, config: RunConfig, draws: Draws) -> str:
    """What a run has that a planned one has not; "" where it is the same."""
    path = folder / "config.toml"
    settings = "other settings than the experiment has now"
    try:
        before = RunConfig.load(path)
    except ConfigError as error:
        return f"{settings} (which this version does not take: {error})"
    if before != config:
        return f"{settings} ({'; '.join(changed_settings(before, config))})"
    if not is_whole(path, before):
        return f"{settings} (of a version that had fewer)"
    noted = noted_split(folder)
    if noted is None:
        return "subjects that it has no note of" if has_results(folder) else ""
    moved = moved_subjects(noted, draws.of(config))
    return f"other subjects than the data has now, or of the same in other parts ({moved})" if moved else ""


def run_experiment(
    plan: Plan,
    out: Path,
    *,
    smoke: bool = False,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overwrite: bool = False,
    max_minutes: float = 0.0,
    console: Console | None = None,
    tell: Callable[[str], None] = print,
) -> bool:
    """Make what is not made yet.

    Args:
        plan: the experiment.
        out: its folder, beside those of other experiments, from which it may take networks over.
        smoke: tiny runs on phantoms, to see that all of it works.
        only: names of the variants to run, * and ? standing for others; none runs all.
        seeds: those to run; none runs all.
        overwrite: whether runs of other settings or subjects than the plan's are replaced.
        max_minutes: stop then, with what is in hand saved; 0 goes on to the end.
        console: where progress is shown.
        tell: gets a line a run.

    Returns:
        Whether all of it is done.

    Raises:
        PpcmiError: bad settings or data, or finished runs of other settings or subjects.
        KeyboardInterrupt: by the user; the same call goes on.
    """
    runs = planned_runs(plan, data_folder(plan, out.parent, smoke=smoke), smoke=smoke)
    chosen = _chosen(runs, only, seeds)
    draws = Draws()
    waiting = [
        run for run in chosen if not is_finished(out / run.folder, run.config, draws, overwrite=overwrite)
    ]
    tell(f"{len(runs)} runs, {len(chosen)} of them asked for, {len(waiting)} to do")
    deadline = _Deadline(max_minutes)
    try:
        for run in waiting:
            if deadline.passed:
                tell("time is up; the same command goes on")
                return False
            tell(f"{run.variant}, seed {run.seed}")
            _make(run, out, draws, console, tell)
    except KeyboardInterrupt:
        if not deadline.passed:
            raise
        tell("time is up, what was in hand is saved; the same command goes on")
        return False
    finally:
        deadline.cancel()
    return True


def _chosen(runs: Sequence[PlannedRun], only: Sequence[str], seeds: Sequence[int]) -> list[PlannedRun]:
    """The runs asked for.

    Raises:
        RunError: no variant of such a name, or no such seed.
    """
    names = sorted({run.variant for run in runs})
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise RunError(f"--only: expected one of {', '.join(names)}, got {pattern!r}")
    known = sorted({run.seed for run in runs})
    for seed in seeds:
        if seed not in known:
            raise RunError(f"--seed: expected one of {', '.join(map(str, known))}, got {seed}")
    return [
        run
        for run in runs
        if (not only or any(fnmatch.fnmatchcase(run.variant, pattern) for pattern in only))
        and (not seeds or run.seed in seeds)
    ]


def _make(
    run: PlannedRun, out: Path, draws: Draws, console: Console | None, tell: Callable[[str], None]
) -> None:
    folder, split = out / run.folder, draws.of(run.config)
    begun = folder / "config.toml"
    source = None if run.networks_from is None else out / run.networks_from / f"seed-{run.seed}"
    if source is not None:
        check_finished(source, split)
    # Beside the new one until that has taken what its settings leave as it was.
    replaced = folder.with_name(f"{folder.name}.replaced")
    if begun.is_file() and _difference(folder, run.config, draws):
        if replaced.exists():
            RunFolder(replaced).remove()
        folder.rename(replaced)
    taken = begin_with_known(run.config, folder, out.parent, source, split)
    if replaced.exists():
        RunFolder(replaced).remove()
    if taken:
        tell(f"  taken over: {', '.join(taken)}")
    federate(run.config, folder, resume=begun.is_file(), console=console)
    write_report(folder)


class _Deadline:
    """Interrupts the process, as Ctrl-C would, when the time is up: every stage saves itself then."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._timer = (
            threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT)) if minutes else None
        )
        if self._timer is not None:
            # A shell's background jobs ignore it.
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self._timer.daemon = True
            self._timer.start()

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
