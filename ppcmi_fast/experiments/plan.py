"""An experiment file: one question, and the runs that answer it."""

from __future__ import annotations

import copy
import os
import re
import tempfile
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ppcmi_fast.data.phantom import MODALITIES, NATIVE_KINDS, write_native, write_phantom
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.experiments.reuse import EVALUATION
from ppcmi_fast.federation.config import RunConfig, changed_settings, read_toml, setting_of

PHANTOM = "phantom:"
# What a figure may have on its x axis that is no setting.
PAYLOAD = "payload"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# What may differ from the run whose networks are taken over: how answers are sent, measured and compared.
ANSWERS = ("bits_up", "bits_down", *EVALUATION)
# Stages that a run may do without.
LEFT_OUT_BY_ZERO = ("mapper.steps", "tuning.rounds")
# Ours in a run whose baselines alone are wanted: as little of it as there can be.
NEXT_TO_NOTHING = {
    "codec.rounds": 1,
    "codec.local_steps": 1,
    "mapper.steps": 2,
    "mapper.views": 1,
    "tuning.rounds": 0,
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Section):
    """One setting of what is asked.

    Attributes:
        name: of its folder and its rows.
        settings: dotted names of `RunConfig` and their values, over those of the experiment.
        networks_from: the variant whose trained networks of ours are taken over instead of training others.
        seeds: of this variant; none takes those of the experiment.
        hidden: a piece, run only for what others take over from it; not in tables.
        baselines_only: a hidden piece with next to nothing of ours in it, which needs no other piece before it.
    """

    name: str
    settings: dict[str, Any] = {}
    networks_from: str | None = None
    seeds: tuple[int, ...] = ()
    hidden: bool = False
    baselines_only: bool = False

    @model_validator(mode="after")
    def _piece(self) -> Variant:
        if self.baselines_only and (not self.hidden or self.networks_from is not None):
            raise ValueError(
                f"variants.{self.name}.baselines_only: expected hidden = true and no networks_from, because ours in it"
                f" is worth nothing, got hidden = {str(self.hidden).lower()}, networks_from = {self.networks_from!r}"
            )
        return self


class Figure(_Section):
    """A curve of Dice over the variants.

    Attributes:
        x: "payload" (bytes an image, up and down), or the dotted name of a numeric setting.
        label: of the x axis.
        methods: to be drawn.
        split: the dotted name of a setting, each value of which has curves of its own; "" for none.
    """

    x: str
    label: str
    methods: tuple[str, ...] = ("ppcmi",)
    split: str = ""

    @field_validator("x", "split")
    @classmethod
    def _is_a_setting(cls, name: str, info: ValidationInfo) -> str:
        if name == (PAYLOAD if info.field_name == "x" else ""):
            return name
        try:
            value = setting_of(RunConfig.build({"data": "data"}), name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if info.field_name == "x" and not isinstance(value, (int, float)):
            raise ValueError(f"expected a setting whose value is a number, got {name!r}, which is {value!r}")
        return name


class Plan(_Section):
    """An experiment.

    Attributes:
        title, question: for the page.
        notes: what the figures mean, for the page; without figures, which would not change with them.
        data: a data set's folder, in which $NAMES of the environment are replaced, or "phantom:KIND".
        phantom: arguments of the phantom: subjects, sites, size.
        seeds: each is a run of every variant.
        settings: dotted names of `RunConfig` and their values, of all variants.
        variants: at least one.
        smoke: settings that make every run tiny, but for stages that it leaves out; with them phantoms stand in for any
            data.
        figure: of all variants; None draws none.
        rows: whether the page shows pictures with every method's contours; of phantoms only, because they are kept.
    """

    title: str
    question: str
    notes: str = ""
    data: str
    phantom: dict[str, int] = {}
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    settings: dict[str, Any] = {}
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    smoke: dict[str, Any] = {}
    figure: Figure | None = None
    rows: bool = False

    def seeds_of(self, variant: Variant) -> tuple[int, ...]:
        """The seeds with which a variant is run."""
        return variant.seeds or self.seeds

    @model_validator(mode="after")
    def _named_once(self) -> Plan:
        names = [variant.name for variant in self.variants]
        hidden = {variant.name for variant in self.variants if variant.hidden}
        for name in names:
            if not NAME.fullmatch(name) or names.count(name) > 1:
                raise ValueError(f"variants: expected names of a-z, 0-9, _ and -, each once, got {name!r}")
        if self.rows and not self.data.startswith(PHANTOM):
            raise ValueError(
                "rows: expected true of phantoms only, got a data set: patients' images are not kept"
            )
        for number, variant in enumerate(self.variants):
            source = variant.networks_from
            if source is None:
                continue
            if source not in names[:number]:
                raise ValueError(
                    f"variants.{variant.name}.networks_from: expected a variant before it, got {source!r}"
                )
            if source in hidden and not variant.hidden:
                raise ValueError(
                    f"variants.{variant.name}.networks_from: expected a variant of the tables, got {source!r}, which is"
                    " hidden"
                )
            lacking = set(self.seeds_of(variant)) - set(self.seeds_of(self.variants[names.index(source)]))
            if lacking:
                raise ValueError(
                    f"variants.{variant.name}.seeds: expected seeds that {source!r} has, got {min(lacking)}"
                )
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        variant, seed: which.
        config: its settings.
        networks_from: the variant whose networks it takes over.
        hidden: not in tables.
    """

    variant: str
    seed: int
    config: RunConfig
    networks_from: str | None
    hidden: bool

    @property
    def folder(self) -> Path:
        """Below the experiment's folder."""
        return Path(self.variant) / f"seed-{self.seed}"


def load_plan(path: Path) -> Plan:
    """Read an experiment file.

    Raises:
        ConfigError: no such file, not TOML, or not an experiment.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: expected an experiment file, found none; see `ppcmi experiment list`")
    try:
        return Plan.model_validate(read_toml(path))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'plan'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(lines)}") from None


def data_folder(plan: Plan, out: Path, *, smoke: bool) -> Path:
    """The folder of the data set; phantoms are written below `out` when they are not there yet.

    Raises:
        ConfigError: an unknown phantom, or a folder that does not exist.
    """
    if smoke and not plan.data.startswith(PHANTOM):
        return _phantom("cardiac", out / "data", {"subjects": 3, "sites": 2, "size": 32})
    if plan.data.startswith(PHANTOM):
        # Three subjects a site: one each to train, validate and test.
        tiny = {"size": 48, "subjects": 3 * plan.phantom.get("sites", 4)}
        sizes = {**plan.phantom, **(tiny if smoke else {})}
        return _phantom(plan.data.removeprefix(PHANTOM), out / "data", sizes)
    folder = Path(os.path.expandvars(plan.data)).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"data: expected a data set's folder, {plan.data} is none here ({folder}); set the variables that it"
            " names, such as PPCMI_DATA"
        )
    return folder.resolve()


def _phantom(kind: str, folder: Path, arguments: dict[str, int]) -> Path:
    known = (*MODALITIES, *NATIVE_KINDS)
    if kind not in known:
        raise ConfigError(f"data: expected phantom: and one of {', '.join(known)}, got {kind!r}")
    out = folder / f"{kind}-{'-'.join(f'{k}{v}' for k, v in sorted(arguments.items())) or 'default'}"
    write: Any = write_phantom if kind in MODALITIES else write_native
    _, _, *names = signature(write).parameters
    unknown = sorted(arguments.keys() - set(names))
    if unknown:
        raise ConfigError(f"phantom: expected some of {', '.join(names)} for {kind}, got {unknown[0]!r}")
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Elsewhere first: what an interrupted run left would be taken for the whole.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
            write(kind, Path(scratch) / kind, **arguments)
            # Another process may have been quicker.
            if not out.exists():
                (Path(scratch) / kind).rename(out)
    return out


def planned_runs(plan: Plan, data: Path, *, smoke: bool = False) -> list[PlannedRun]:
    """Every run, variant by variant; tiny ones leave out the pieces, which do nothing that others do not.

    Raises:
        ConfigError: settings that do not validate, other networks than the variant that they are taken from, or
            baselines alone without a budget of their own.
    """
    runs = []
    configs: dict[tuple[str, int], RunConfig] = {}
    for variant in plan.variants:
        if smoke and variant.hidden:
            continue
        seeds = plan.seeds_of(variant)
        for seed in plan.seeds[:1] if smoke else seeds:
            ours = NEXT_TO_NOTHING if variant.baselines_only else {}
            merged = {**plan.settings, **variant.settings, **ours}
            if smoke:
                left_out = {name for name in LEFT_OUT_BY_ZERO if merged.get(name) == 0}
                merged |= {name: value for name, value in plan.smoke.items() if name not in left_out}
            config = RunConfig.build(_nested({**merged, "data": str(data), "seed": seed}))
            if variant.baselines_only and not config.baselines.images:
                raise ConfigError(
                    f"variants.{variant.name}.baselines_only: expected baselines.images, because ours sees next to none"
                    " here, got 0; set it"
                )
            configs[variant.name, seed] = config
            if variant.networks_from is not None:
                _check_networks(
                    variant.name, variant.networks_from, config, configs[variant.networks_from, seed]
                )
            runs.append(PlannedRun(variant.name, seed, config, variant.networks_from, variant.hidden))
    return runs


def _nested(dotted: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in dotted.items():
        *sections, last = name.split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
        # A section of rates is the plan's own, which single ones of a variant are not to change.
        target[last] = copy.deepcopy(value)
    return result


def _check_networks(name: str, other: str, config: RunConfig, source: RunConfig) -> None:
    """Raise ConfigError unless the source trained what this variant would have trained."""
    changed = changed_settings(source, config, leave_out=ANSWERS)
    if changed:
        raise ConfigError(
            f"variants.{name}: expected the settings of {other!r} but for {', '.join(ANSWERS)}, got"
            f" {'; '.join(changed)}; train it by itself"
        )
