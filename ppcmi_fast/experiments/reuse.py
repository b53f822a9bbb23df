"""Nothing is trained twice: networks of the same settings are taken over from finished runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ppcmi_fast.baselines.base import CHOSEN, TRIED, method_of, same_rate, split_stage
from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.federation.codecs import latent_noise
from ppcmi_fast.federation.config import STAGES_FILE, RunConfig, is_whole
from ppcmi_fast.federation.runfolder import (
    OUR_STAGES,
    Parts,
    RunFolder,
    has_results,
    noted_split,
    read_json,
    write_json,
)
from ppcmi_fast.federation.sections import FEDERATED, UNET_METHODS

# Ours: the keys go with what was trained under them.
OUR_FOLDERS = ("keys", "server", "sites")
# What the codecs know nothing of: they are trained before anything is protected.
AFTER_CODECS = (
    "bits_up",
    "bits_down",
    "folds",
    "mixing",
    "mask_mixing",
    "mask_weights",
    "trust",
    "mapper",
    "tuning",
)
AFTER_CODECS_FILES = (
    "mapper.safetensors",
    "mapper_tuned.safetensors",
    "encoder_tuned.safetensors",
    "threshold.json",
)
# Noted with a mapper that was trained under other settings than its run's.
TRAINED_WITH = "trained_with"
# What changes answers and scores, but not what was trained.
EVALUATION = ("calibrate", "query_views", "baselines", "measures", "threads", "device")
RATES = ("learning_rate", "method_rates", "learning_rates")
# What decides the images that a baseline sees, and in which part they are.
DATA = ("data", "size", "classes", "seed", "reading", "late_sites")
# And what decides how many images ours saw.
OUR_IMAGES = {
    "codec": {"rounds", "local_steps", "batch"},
    "mapper": {"batch"},
    "tuning": {"rounds", "local_steps", "batch"},
}


def our_training(config: RunConfig) -> dict[str, Any]:
    """The settings that our networks depend on."""
    return config.model_dump(exclude={*EVALUATION})


def codec_training(config: RunConfig) -> dict[str, Any]:
    """The settings that the codecs of ours depend on."""
    return config.model_dump(exclude={*EVALUATION, *AFTER_CODECS}) | {"noise": latent_noise(config)}


def baseline_training(config: RunConfig, method: str) -> dict[str, Any]:
    """The settings that a baseline depends on."""
    others = {"methods", *RATES} if method in FEDERATED else {"methods", "work", *RATES}
    own = config.model_dump(include={*DATA}) | {"baselines": config.baselines.model_dump(exclude=others)}
    # The published profiles have their own rate.
    if method in UNET_METHODS:
        # Of rates as good as each other the given one is chosen.
        own["rates"] = (*config.baselines.learning_rates, config.baselines.rate_of(method))
    if config.baselines.images:
        return own
    # As many images as ours saw, which with patience depends on all of it.
    ours = our_training(config) if config.mapper.patience else config.model_dump(include=OUR_IMAGES)
    return own | ours | {"steps": config.mapper_steps}


def same_baseline(before: RunConfig, now: RunConfig, method: str, rate: float | None) -> bool:
    """Whether a baseline is what these settings would train.

    Args:
        before: the settings that it was trained with.
        now: the settings.
        method: its name.
        rate: that it was trained with: where several were tried and now this one is given, it is the same.
    """
    one, two = baseline_training(before, method), baseline_training(now, method)
    if before.baselines.rates_to_try(method) and not now.baselines.rates_to_try(method):
        one["rates"] = (rate,)
    return one == two


def same_but_for_rates(before: RunConfig, now: RunConfig, method: str) -> bool:
    """Whether trainings of a baseline at one rate are the same under these settings."""
    one, two = ({**baseline_training(config, method), "rates": ()} for config in (before, now))
    return one == two


@dataclass(frozen=True)
class FinishedRun:
    """A finished run that others may take networks from."""

    folder: Path
    config: RunConfig

    @cached_property
    def trained(self) -> RunConfig:
        """The settings that our networks in it were trained with: not its own where it took them by name."""
        taken = self.stages["mapper"].get(TRAINED_WITH, {})
        return self.config.model_copy(update=taken)

    @cached_property
    def stages(self) -> dict[str, Any]:
        """What it has trained, by stage."""
        found: dict[str, Any] = read_json(self.folder / STAGES_FILE)
        return found

    @cached_property
    def answer_rates(self) -> dict[str, float]:
        """The learning rates that its baselines answer with."""
        methods = read_json(self.folder / "metrics.json")["methods"]
        return {name: facts["learning_rate"] for name, facts in methods.items() if "learning_rate" in facts}

    def rates_of(self, method: str) -> list[float]:
        """The learning rates at which one of its baselines was trained to the end, whatever it answers with."""
        others = [
            rate for _, mark, rate in self.stages_of(method).values() if mark == CHOSEN and rate is not None
        ]
        return [self.answer_rates[method], *others]

    def stages_of(self, method: str) -> dict[str, tuple[str, str, float | None]]:
        """The parts of the names of a baseline's stages, by name."""
        tried = [method] if self.config.baselines.rates_to_try(method) else []
        return {stage: split_stage(stage, tried) for stage in self.stages if method_of(stage) == method}


def finished_runs(out: Path) -> Iterator[FinishedRun]:
    """Those of every experiment in the folder of experiments, by name."""
    for metrics in sorted(out.glob("*/*/seed-*/metrics.json")):
        folder = metrics.parent
        try:
            config = RunConfig.load(folder / "config.toml")
        except ConfigError:
            # Of a version with other settings: nothing to take.
            continue
        # Nor of one with fewer: what it did without them need not be what is the default now.
        if is_whole(folder / "config.toml", config):
            yield FinishedRun(folder, config)


def _first(runs: list[FinishedRun], fits: Callable[[FinishedRun], bool]) -> Path | None:
    return next((run.folder for run in runs if fits(run)), None)


def begin_with_known(
    config: RunConfig, target: Path, out: Path, networks: Path | None, split: Parts
) -> list[str]:
    """Begin a run with what finished runs have trained for it on the same subjects.

    Args:
        config: its settings.
        target: its folder.
        out: folder of experiments.
        networks: the run whose networks of ours it takes, whatever its settings; None takes those of a run of the same.
        split: of its data. What was trained on another may have seen subjects that this one tests on.

    Returns:
        What was taken, by name: "ours", or "our codecs" alone, and baselines.

    Raises:
        RunError: `networks` is not finished, or is of other subjects.
    """
    if networks is not None:
        check_finished(networks, split)
    # What is begun rests on its own keys and split.
    if RunFolder(target).started or (target / STAGES_FILE).is_file():
        return []
    runs = [run for run in finished_runs(out) if run.folder != target and noted_split(run.folder) == split]
    wanted, left = OUR_STAGES, shutil.ignore_patterns()
    ours = networks or _first(runs, lambda run: our_training(run.trained) == our_training(config))
    if ours is None:
        wanted, left = ("codec",), shutil.ignore_patterns(*AFTER_CODECS_FILES)
        ours = _first(runs, lambda run: codec_training(run.trained) == codec_training(config))
    sources = {method: _sources(runs, method, config) for method in config.baselines.methods}
    baselines = {method: found for method, found in sources.items() if found}
    if ours is None and not baselines:
        return []
    folder = RunFolder.open(target, config, resume=target.exists(), overwrite=False)
    stages: dict[str, Any] = {}
    if ours is not None:
        for name in OUR_FOLDERS:
            shutil.copytree(ours / name, target / name, ignore=left, dirs_exist_ok=True)
        found = read_json(ours / STAGES_FILE)
        stages = {name: found[name] for name in wanted if name in found}
        if networks is not None:
            stages["mapper"][TRAINED_WITH] = _other_settings(networks, config)
    for method, found in baselines.items():
        for source in reversed(found):
            stages |= _copy_baseline(method, source, target, config)
    folder.check_split(split)
    # Last, because what it names must be there.
    write_json(folder.root / STAGES_FILE, stages)
    first = [] if ours is None else ["ours" if wanted == OUR_STAGES else "our codecs"]
    whole = {method for method, found in baselines.items() if _has(found[0], method, config)}
    return [*first, *(method if method in whole else f"{method} in part" for method in baselines)]


def check_finished(networks: Path, split: Parts) -> None:
    """Raise RunError unless networks can be taken from this run, for one with this split."""
    if not has_results(networks):
        raise RunError(f"{networks}: expected a finished run to take networks from; run its variant first")
    if noted_split(networks) != split:
        raise RunError(
            f"{networks}: expected a run on the subjects that the data has now, in the same parts, to take networks"
            " from, got one on others; run its variant again with --overwrite"
        )


def _other_settings(networks: Path, config: RunConfig) -> dict[str, Any]:
    """What the networks of a run were trained with that these settings have otherwise."""
    source = FinishedRun(networks, RunConfig.load(networks / "config.toml"))
    before, now = our_training(source.trained), our_training(config)
    return {name: value for name, value in before.items() if now[name] != value}


def _sources(runs: Sequence[FinishedRun], method: str, config: RunConfig) -> list[FinishedRun]:
    """The run to take a baseline from; where rates are tried and none has tried them all, what has some of it."""
    whole = [run for run in runs if _has(run, method, config)]
    if whole or not config.baselines.rates_to_try(method):
        return whole[:1]
    return [
        run
        for run in runs
        if method in run.config.baselines.methods
        and same_but_for_rates(run.config, config, method)
        and _usable(run, method, config)
    ]


def _has(run: FinishedRun, method: str, config: RunConfig) -> bool:
    if method not in run.config.baselines.methods:
        return False
    known, given = run.rates_of(method), config.baselines.rate_of(method)
    # The given rate, where it is among those to be tried, is trained to the end as well.
    if given in config.baselines.rates_to_try(method) and not any(same_rate(given, rate) for rate in known):
        return False
    return any(same_baseline(run.config, config, method, rate) for rate in known)


def _copy_baseline(method: str, source: FinishedRun, target: Path, config: RunConfig) -> dict[str, Any]:
    """Copy one method's networks as far as these settings have a use for them; their stages."""
    ours, theirs = target / "baselines", source.folder / "baselines"
    ours.mkdir(exist_ok=True)
    stages = {}
    for wanted, name in _usable(source, method, config).items():
        shutil.copyfile(theirs / f"{name}.safetensors", ours / f"{wanted}.safetensors")
        stages[wanted] = source.stages[name]
    return stages


def _usable(source: FinishedRun, method: str, config: RunConfig) -> dict[str, str]:
    """A finished run's stages of a method by what they are called under these settings."""
    settings, answers = config.baselines, source.answer_rates[method]
    rates = settings.rates_to_try(method)
    # The published profiles have their own rate.
    given = settings.rate_of(method) if method in UNET_METHODS else answers
    found = {}
    for stage, (name, mark, marked) in source.stages_of(method).items():
        rate = answers if marked is None else marked
        if rates and any(same_rate(rate, one) for one in rates):
            found[f"{name}{mark or CHOSEN}{rate:g}"] = stage
        elif not rates and mark != TRIED and same_rate(rate, given):
            found[name] = stage
    return found
