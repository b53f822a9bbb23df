"""The settings of a run: one TOML file, or a data folder with the defaults."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ppcmi_fast.codec.mask import AUTOENCODER_SCALES, MASK_WEIGHTS, check_scales
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.sections import (
    BaselineConfig,
    Bits,
    CodecConfig,
    MapperConfig,
    MeasureConfig,
    Positive,
    ReadingConfig,
    Section,
    TuningConfig,
    Weight,
)
from ppcmi_fast.federation.views import VIEWS
from ppcmi_fast.keys import check_federation_id
from ppcmi_fast.ops.params import MAX_ODD_FACTOR, odd_part

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Below this size images have finer grids where none are set: what is a few pixels wide is lost on coarser ones.
# At 64 they gain much, at 128 no more than chance may, for nearly four times the bytes; between is not measured.
SMALL = 96
# Residual blocks a grid in the segmentation head that sites train with their codec.
HEAD_BLOCKS = 1
# What has been trained already is soon as good as it gets on what was uploaded.
STEPS_FROM_HEAD, STEPS_FROM_NOTHING = 300, 1500
# Of a run folder: what its finished stages reported.
STAGES_FILE = "stages.json"
# What was done before there was a setting: where that is not its default now, and where it is and `is_whole` is not to
# miss it.
_BEFORE: dict[str, Any] = {
    "mask_mixing": "hadamard",
    "mask_weights": (1.0, 1.0),
    "query_views": 1,
    "codec": {"dice": "batch", "head_attention": False},
    "mapper": {"attention": False},
    "baselines": {"work": "equal", "method_rates": {}},
}
# Of versions that give figures, but no networks: a head that began with public weights would give the frame away.
_LONG_BEFORE = _BEFORE | {
    "codec": _BEFORE["codec"] | {"work": "equal"},
    "mapper": _BEFORE["mapper"] | {"start": "nothing"},
}


class RunConfig(Section):
    """One experiment.

    Attributes:
        data: folder with images, masks and manifest.csv, or a data set as it is published.
        size: edge in pixels to which images are resized, a multiple of the coarsest scale and mask block.
        trust: what the server is handed, see docs/architecture.md.
        mixing: the sites' mixing of image latents, "hadamard" or "haar".
        mask_mixing: and of mask codes, which are nearly the same all over the background and have few entries that are
            not zero: under some keys "hadamard" makes peaks of them that no code of a few bits reaches.
        mask_weights: what the means of mask codes' blocks and their other frequencies are multiplied by before they are
            protected; with the nonlinear mask codec nothing is.
        folds: positions folded into channels per image scale (1 = none).
        bits_up, bits_down: bits per latent entry on the wire; 32 sends float32.
        threads: torch threads, 0 = all cores.
        device: where networks are trained and applied; "auto" takes a GPU where there is one. Keys, latents on the wire
            and augmentation stay with the CPU.
        late_sites: sites that take no part in training and join when all is trained, to see what that costs them.
        calibrate: whether each site chooses, on its validation images, how likely a class must be against the
            background; otherwise, and with the nonlinear mask codec, whose scores are no probabilities, the class of
            the highest score is taken.
        query_views: in how many views a site asks about an image, as it is and then larger and turned, to take the mean
            of the answers; training knows nothing of them (`mapper.views` are others). Each costs a query.
    """

    data: Path
    size: Positive = 128
    classes: Annotated[int, Field(ge=2, le=256)] | None = None
    trust: Literal["server", "federation", "sites"] = "federation"
    federation_id: str = "ppcmi-run"
    epoch: Annotated[int, Field(ge=0)] = 0
    mixing: Literal["hadamard", "haar"] = "hadamard"
    mask_mixing: Literal["hadamard", "haar"] = "haar"
    mask_weights: tuple[Weight, Weight] = MASK_WEIGHTS
    folds: tuple[int, ...] = (1, 1, 1)
    bits_up: Bits = 4
    bits_down: Bits = 4
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    late_sites: tuple[str, ...] = ()
    calibrate: bool = True
    query_views: Annotated[int, Field(ge=1, le=len(VIEWS))] = 1
    reading: ReadingConfig = ReadingConfig()
    codec: CodecConfig = Field(default=CodecConfig(), validate_default=True)
    mapper: MapperConfig = MapperConfig()
    tuning: TuningConfig = TuningConfig()
    baselines: BaselineConfig = BaselineConfig()
    measures: MeasureConfig = MeasureConfig()

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("federation_id")
    @classmethod
    def _bindable(cls, value: str) -> str:
        check_federation_id(value)
        return value

    @field_validator("codec")
    @classmethod
    def _grids_by_size(cls, codec: CodecConfig, known: ValidationInfo) -> CodecConfig:
        # A size that is none is an error of its own.
        if known.data.get("size", SMALL) >= SMALL:
            return codec
        codec = _with_defaults(codec, scales=(2, 4, 8), mask_block=4)
        return _with_defaults(codec, mask_rank=8) if codec.mask_block == 4 else codec

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        codec = self.codec
        if not (len(codec.scales) == len(codec.channels) == len(self.folds)):
            raise ValueError(
                f"codec.scales, codec.channels and folds: expected one entry per scale, got"
                f" {len(codec.scales)}, {len(codec.channels)} and {len(self.folds)}"
            )
        if codec.sharing == "local" and self.trust != "sites":
            raise ValueError(
                f'codec.sharing="local": expected trust="sites", whose adapters local codecs need, got "{self.trust}"'
            )
        for scale, fold in zip(codec.scales, self.folds, strict=True):
            if fold < 1 or self.size % (scale * fold):
                raise ValueError(
                    f"size: expected a multiple of scale {scale} x fold {fold} = {scale * fold}, got {self.size}"
                )
        linear = codec.mask == "linear"
        masks = {codec.mask_block} if linear else {*AUTOENCODER_SCALES}
        for stride in masks:
            if self.size % stride:
                name = "codec.mask_block=" if linear else "the mask autoencoder's stride "
                raise ValueError(f"size: expected a multiple of {name}{stride}, got {self.size}")
        for method in self.baselines.methods:
            if self.size % self.baselines.stride_of(method):
                raise ValueError(
                    f"size: expected a multiple of {self.baselines.stride_of(method)} for {method}, got {self.size};"
                    " choose another, or leave it out of baselines.methods"
                )
        self._check_dims()
        self._check_start()
        grids = {s * f for s, f in zip(codec.scales, self.folds, strict=True)}
        strides = grids | masks
        if any(s & (s - 1) for s in strides):
            raise ValueError(f"scales x folds and mask_block: expected powers of two, got {sorted(strides)}")
        return self

    def _check_dims(self) -> None:
        """What codes and keys can serve, so that nothing fails after the codecs are trained."""
        check_scales(self.codec.scales, self.codec.channels)
        fewest = min(self.bits_up, self.bits_down)
        per_byte = max(1, 8 // fewest)
        dims = {
            ("mixing", f"codec.channels at scale {scale} x fold {fold}"): channels * fold * fold
            for scale, channels, fold in zip(self.codec.scales, self.codec.channels, self.folds, strict=True)
        }
        if self.codec.mask == "linear":
            if self.codec.mask_rank > self.codec.mask_block**2:
                raise ValueError(
                    f"codec.mask_rank: expected at most mask_block^2 = {self.codec.mask_block**2},"
                    f" got {self.codec.mask_rank}; set codec.mask_block as well"
                )
            dims["mask_mixing", "codec.mask_rank"] = self.codec.mask_rank
        for (mixing, name), dim in dims.items():
            if dim % per_byte:
                raise ValueError(f"{name}: expected a multiple of {per_byte} at {fewest} bits, got {dim}")
            self._check_mixing(mixing, name, dim)

    def _check_mixing(self, setting: str, name: str, dim: int) -> None:
        hadamard = getattr(self, setting) == "hadamard"
        if hadamard and (odd_part(dim) > MAX_ODD_FACTOR or odd_part(dim) == dim > 1):
            raise ValueError(
                f'{name}: expected m * 2^a with odd m <= {MAX_ODD_FACTOR}, got {dim}; set {setting}="haar"'
            )

    @property
    def head_obstacle(self) -> str:
        """Why the mapper cannot start from the sites' head; "" where it can."""
        codec, mapper = self.codec, self.mapper
        if self.trust == "sites":
            return 'trust="sites", which has no common frame'
        if codec.sharing == "phantom":
            return 'codec.sharing="phantom", whose head has seen no real image'
        if any(fold != 1 for fold in self.folds):
            return f"folds={list(self.folds)}, which the head does not read"
        if (mapper.width, mapper.blocks) != (codec.head_width, HEAD_BLOCKS):
            return (
                f"mapper.width={mapper.width}, mapper.blocks={mapper.blocks}, where the head has {codec.head_width} and"
                f" {HEAD_BLOCKS}"
            )
        if mapper.attention != codec.head_attention:
            given = f"mapper.attention={mapper.attention}, codec.head_attention={codec.head_attention}"
            return f"{given.lower()}, which differ"
        return ""

    @property
    def starts_from_head(self) -> bool:
        """Whether the mapper starts from the sites' segmentation head."""
        return self.mapper.start != "nothing" and not self.head_obstacle

    @property
    def mapper_steps(self) -> int:
        """Steps of the mapper's training."""
        if self.mapper.steps != "auto":
            return self.mapper.steps
        return STEPS_FROM_HEAD if self.starts_from_head else STEPS_FROM_NOTHING

    def _decided(self) -> RunConfig:
        """With what "auto" comes to, and without what nothing depends on: settings which do the same are the same."""
        start = "head" if self.starts_from_head else "nothing"
        mapper = self.mapper.model_copy(update={"start": start, "steps": self.mapper_steps})
        return self.model_copy(update={"mapper": mapper, "baselines": self.baselines.decided()})

    def _check_start(self) -> None:
        if self.mapper.start == "head" and self.head_obstacle:
            raise ValueError(
                f'mapper.start="head": expected a mapper like the head in a common frame, got {self.head_obstacle};'
                ' use mapper.start="nothing"'
            )
        if self.mapper_steps == 0 and not self.starts_from_head:
            reason = self.head_obstacle or 'mapper.start="nothing"'
            raise ValueError(
                f"mapper.steps: expected at least 1 without a head to start from ({reason}), got 0"
            )

    @property
    def calibrated(self) -> bool:
        """Whether sites choose thresholds: asked for, and the scores are probabilities."""
        return self.calibrate and self.codec.mask == "linear"

    def check_classes(self, classes: int) -> None:
        """What only the data tells: whether the keys can serve `classes` classes, background included.

        Raises:
            ConfigError: the mixing does not take that many mask latents.
        """
        if self.codec.mask == "linear":
            try:
                dim = (classes - 1) * self.codec.mask_rank
                self._check_mixing("mask_mixing", "(classes - 1) x codec.mask_rank", dim)
            except ValueError as error:
                raise ConfigError(str(error)) from None

    @classmethod
    def build(cls, values: dict[str, Any], overrides: list[str] | None = None) -> RunConfig:
        """Validate settings, `overrides` ("codec.rounds=10") applied last, and decide what is left to "auto".

        Raises:
            ConfigError: unknown setting, wrong type or a contradiction, each named.
        """
        merged = copy.deepcopy(values)
        for item in overrides or []:
            _apply_override(merged, item)
        try:
            return cls.model_validate(merged)._decided()
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
            raise ConfigError("; ".join(lines)) from None

    @classmethod
    def load(cls, path: Path, overrides: list[str] | None = None) -> RunConfig:
        """Read a TOML file (relative `data` is relative to the file), or take a data folder with the defaults.

        That of a run which has begun means what it did to the version that wrote it.

        Raises:
            ConfigError: no such path, not TOML, or settings that do not validate.
        """
        if path.is_dir():
            return cls.build({"data": str(path)}, overrides)
        if not path.is_file():
            raise ConfigError(f"{path}: expected a data folder or a TOML file, found nothing; check the path")
        values = read_settings(path)
        if "data" in values:
            values["data"] = str(path.parent / Path(values["data"]).expanduser())
        return cls.build(values, overrides)

    def to_toml(self) -> str:
        """The settings as TOML that `load` reads back to an equal object."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _with_defaults(codec: CodecConfig, **defaults: Any) -> CodecConfig:
    """The section with these where nothing is set."""
    return codec.model_copy(
        update={name: value for name, value in defaults.items() if name not in codec.model_fields_set}
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, got {error}") from None


def read_settings(path: Path, before: dict[str, Any] = _LONG_BEFORE) -> dict[str, Any]:
    """The settings in a TOML file; in that of a run which has begun, with what was done before there was a setting.

    Raises:
        ConfigError: it is not TOML.
    """
    written = read_toml(path)
    return with_before(written, before) if (path.parent / STAGES_FILE).is_file() else written


def with_before(written: dict[str, Any], before: dict[str, Any] = _LONG_BEFORE) -> dict[str, Any]:
    """Settings of a run, what there was no setting for yet as it was done then."""
    known = dict(written)
    for name, value in before.items():
        had = known.setdefault(name, value)
        if isinstance(value, dict) and isinstance(had, dict):
            known[name] = value | had
    return known


def is_whole(path: Path, config: RunConfig) -> bool:
    """Whether the TOML file from which `config` was loaded tells every setting on which networks of this version rest.

    What it did without the others need not be what is the default now.
    """
    written, now = read_settings(path, _BEFORE), tomllib.loads(config.to_toml())
    return all(
        key in written and (not isinstance(value, dict) or value.keys() <= written[key].keys())
        for key, value in now.items()
    )


def _apply_override(values: dict[str, Any], item: str) -> None:
    name, separator, text = item.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set: expected name=value such as codec.rounds=10, got {item!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = name.strip().split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {item}: {section} is a setting, not a section")
    target[last] = value


def changed_settings(before: RunConfig, now: RunConfig, leave_out: Sequence[str] = ()) -> list[str]:
    """One line a setting that differs: its dotted name and both values."""
    one, two = (_flat(config.model_dump(mode="json", exclude={*leave_out})) for config in (before, now))
    # A rate that only one of them has is no key of the other.
    both = {key: (one.get(key, "unset"), two.get(key, "unset")) for key in (*one, *two)}
    return [f"{key}: {then} -> {now}" for key, (then, now) in both.items() if then != now]


def setting_of(config: RunConfig, name: str) -> Any:
    """The value of a setting by its dotted name.

    Raises:
        ConfigError: there is none of that name.
    """
    known = _flat(config.model_dump(mode="json"))
    if name not in known:
        raise ConfigError(
            f"expected the dotted name of a setting such as codec.rounds, got {name!r}; correct it"
        )
    return known[name]


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
