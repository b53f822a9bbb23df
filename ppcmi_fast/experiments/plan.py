"""An experiment file: one question, and the runs that answer it."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ppcmi_fast.data.phantom import MODALITIES, NATIVE_KINDS, write_native, write_phantom
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.config import RunConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PHANTOM = "phantom:"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# What may differ from the run whose networks are taken over: how answers are sent, measured and compared.
EVALUATION = ("bits_up", "bits_down", "baselines", "measures", "threads")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Section):
    """One setting of what is asked.

    Attributes:
        name: of its folder and its rows.
        settings: dotted names of `RunConfig` and their values, over those of the experiment.
        networks_from: variants whose trained networks, baselines among them, are taken over instead of training others.
    """

    name: str
    settings: dict[str, Any] = {}
    networks_from: tuple[str, ...] = ()

    @field_validator("networks_from", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Figure(_Section):
    """A curve of Dice over the variants.

    Attributes:
        x: "payload" (bytes an image, up and down), or the dotted name of a numeric setting.
        label: of the x axis.
        methods: to be drawn.
    """

    x: str
    label: str
    methods: tuple[str, ...] = ("ppcmi",)


class Plan(_Section):
    """An experiment.

    Attributes:
        title, question: for the page.
        data: a data set's folder, in which $NAMES of the environment are replaced, or "phantom:KIND".
        phantom: arguments of the phantom: subjects, sites, size.
        seeds: each is a run of every variant.
        settings: dotted names of `RunConfig` and their values, of all variants.
        variants: at least one.
        smoke: settings that make every run tiny; with them phantoms stand in for any data.
    """

    title: str
    question: str
    data: str
    phantom: dict[str, int] = {}
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    settings: dict[str, Any] = {}
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    smoke: dict[str, Any] = {}
    figure: Figure | None = None

    @model_validator(mode="after")
    def _named_once(self) -> Plan:
        names = [variant.name for variant in self.variants]
        for name in names:
            if not NAME.fullmatch(name) or names.count(name) > 1:
                raise ValueError(f"variants: expected names of a-z, 0-9, _ and -, each once, got {name!r}")
        for number, variant in enumerate(self.variants):
            unknown = [name for name in variant.networks_from if name not in names[:number]]
            if unknown:
                raise ValueError(
                    f"variants.{variant.name}.networks_from: expected variants before it, got {unknown[0]!r}"
                )
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        variant, seed: which.
        config: its settings.
        networks_from: the variants whose networks it takes over.
    """

    variant: str
    seed: int
    config: RunConfig
    networks_from: tuple[str, ...]

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
        return Plan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, got {error}") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'plan'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(lines)}") from None


def data_folder(plan: Plan, out: Path, *, smoke: bool) -> Path:
    """The folder of the data set; phantoms are written beside the runs when they are not there yet.

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
    if not out.exists():
        write: Any = write_phantom if kind in MODALITIES else write_native
        # Under another name first: what an interrupted run left would be taken for the whole.
        scratch = out.with_name(out.name + ".part")
        scratch.parent.mkdir(parents=True, exist_ok=True)
        write(kind, scratch, **arguments)
        scratch.rename(out)
    return out


def planned_runs(plan: Plan, data: Path, *, smoke: bool = False) -> list[PlannedRun]:
    """Every run, variant by variant.

    Raises:
        ConfigError: settings that do not validate, or other networks than the variant that they are taken from.
    """
    runs = []
    configs: dict[tuple[str, int], RunConfig] = {}
    for variant in plan.variants:
        for seed in plan.seeds[:1] if smoke else plan.seeds:
            merged = {**plan.settings, **variant.settings, **(plan.smoke if smoke else {})}
            config = RunConfig.build(_nested({**merged, "data": str(data), "seed": seed}))
            configs[variant.name, seed] = config
            for source in variant.networks_from:
                _check_networks(variant.name, source, config, configs[source, seed])
            runs.append(PlannedRun(variant.name, seed, config, variant.networks_from))
    return runs


def _nested(dotted: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in dotted.items():
        *sections, last = name.split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return result


def _check_networks(name: str, other: str, config: RunConfig, source: RunConfig) -> None:
    """Raise ConfigError unless the source trained what this variant would have trained."""
    pairs = [
        (c.model_dump(exclude=set(EVALUATION)), c.baselines.model_dump(exclude={"methods"}))
        for c in (config, source)
    ]
    (one, ours), (two, theirs) = pairs
    changed = sorted(key for key in one if one[key] != two[key])
    if config.baselines.methods and source.baselines.methods:
        changed += sorted(f"baselines.{key}" for key in ours if ours[key] != theirs[key])
    if changed:
        raise ConfigError(
            f"variants.{name}: expected the settings of {other!r} but for {', '.join(EVALUATION)}, got others of"
            f" {', '.join(changed)}; train it by itself"
        )
