"""The sections of a run's settings, each of one part of the system."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Bits = Literal[2, 4, 8, 32]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
UNetMethod = Literal["unet_centralised", "unet_local", "fedavg", "fedprox", "fedbn", "split_learning"]
Architecture = Literal[
    "unet", "attention_unet", "segresnet", "dynunet", "unet_batch_norm", "dynunet_batch_norm"
]
Method = Literal[
    UNetMethod,
    "published",
    "privacy_sf",
    "published_no_klt",
    "published_no_pyramid",
    "published_no_skips",
]

UNET_METHODS: tuple[str, ...] = get_args(UNetMethod)
# Those whose sites work in rounds.
FEDERATED = ("fedavg", "fedprox", "fedbn", "split_learning")


class Section(BaseModel):
    """Settings of which unknown ones are refused and none is changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CodecConfig(Section):
    """The codecs and how the sites train them.

    `sharing`: "averaged" trains one codec by rounds of sealed averaging among the sites; "phantom" trains it at one
    site on synthetic images; "local" gives each site its own (trust mode "sites" only).
    `work`: how sites that share a codec divide a round of averaging: "equal", `local_steps` each; "images", as many in
    all, in proportion to their training images, at least one each. Batches of split fine-tuning are divided alike.
    `scales`, `mask_block`, `mask_rank`: strides of the latents, edge of a block of mask codes and how many frequencies
    of it are kept. In a run on images under 96 pixels each has another default: (2, 4, 8), 4, and 8 of a block of 4.
    `head_attention`: whether the segmentation head has attention gates, as `MapperConfig.attention`.
    `dice`: whether the Dice of their own loss is that of each "image" or of a "batch", in which large structures count
    more; mapper and fine-tuning know squared error alone.
    """

    sharing: Literal["averaged", "phantom", "local"] = "averaged"
    work: Literal["images", "equal"] = "images"
    scales: tuple[int, ...] = (4, 8, 16)
    channels: tuple[int, ...] = (16, 32, 64)
    width: Positive = 24
    blocks: Positive = 2
    head_width: Positive = 48
    head_attention: bool = False
    reconstruction: Annotated[float, Field(ge=0)] = 0.2
    dice: Literal["image", "batch"] = "batch"
    rounds: Positive = 60
    local_steps: Positive = 12
    batch: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    phantom: Literal["cardiac", "ultrasound"] = "cardiac"
    mask: Literal["linear", "autoencoder"] = "linear"
    mask_block: Positive = 8
    mask_rank: Positive = 16


class MapperConfig(Section):
    """The server's mapper.

    Attributes:
        attention: let gates decide what of a grid's features joins what comes up from coarser ones.
        views: copies of each training image uploaded, the first as it is, others augmented.
        balance: how much more positions count whose mask code is rare, see `mapper.training.position_weights`.
        start: "head", the segmentation head that the sites trained with their codec, turned into the common frame;
            "nothing", random weights; "auto", the head wherever `RunConfig.head_obstacle` finds nothing against it.
        steps: of its training on what was uploaded; "auto", 300 from a head and 1500 from nothing. 0, with a head
            alone, leaves that as it is and uploads nothing.
    """

    start: Literal["auto", "head", "nothing"] = "auto"
    width: Positive = 48
    blocks: Positive = 1
    attention: bool = False
    steps: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    batch: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    views: Positive = 8
    balance: Annotated[float, Field(ge=0)] = 0.3
    patience: Annotated[int, Field(ge=0)] = 0


class TuningConfig(Section):
    """Split fine-tuning of encoders and mapper after the one-shot upload; `rounds` 0 leaves it out.

    Attributes:
        rounds: each closed by a sealed average of the encoders.
        local_steps: steps a round, made by all sites together.
        batch: images a site and step, on the mean over sites; see `CodecConfig.work`.
        learning_rate: of the sites' encoders.
        mapper_learning_rate: of the server's mapper.
    """

    rounds: Annotated[int, Field(ge=0)] = 0
    local_steps: Positive = 12
    batch: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    mapper_learning_rate: Annotated[float, Field(gt=0)] = 1e-3


class BaselineConfig(Section):
    """The methods beside it; see docs/baselines.md.

    Attributes:
        methods: their names.
        architecture: of their networks; fedbn is of "unet_batch_norm", also for "unet", and split_learning of "unet".
        batch: images a step.
        learning_rate: peak rate of AdamW.
        method_rates: of methods that have another; the published profiles keep theirs.
        learning_rates: to be tried first, each for a tenth of the budget, see `baselines.run_method`; empty takes the
            ones above.
        rounds: of federated methods.
        work: how their sites divide a round, as `CodecConfig.work`.
        mu: weight of FedProx's proximal term.
        published_width: fraction of the published networks' channels; their whole width is for a GPU.
        images: that each method sees; 0 gives it as many as codec and mapper saw together.
    """

    methods: tuple[Method, ...] = ("unet_centralised", "unet_local")
    architecture: Architecture = "unet"
    batch: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    method_rates: dict[UNetMethod, Annotated[float, Field(gt=0)]] = {}
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    rounds: Positive = 40
    work: Literal["images", "equal"] = "images"
    mu: Annotated[float, Field(ge=0)] = 0.01
    published_width: Annotated[float, Field(gt=0, le=1)] = 0.25
    images: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _cuttable(self) -> BaselineConfig:
        serves: dict[str, set[str]] = {"unet": {"fedbn", "split_learning"}, "unet_batch_norm": {"fedbn"}}
        refused = {"fedbn", "split_learning"} & set(self.methods) - serves.get(self.architecture, set())
        if refused:
            raise ValueError(
                f'architecture: expected "unet" for {", ".join(sorted(refused))}, got "{self.architecture}"; leave'
                " them out"
            )
        return self

    @model_validator(mode="after")
    def _one_rate(self) -> BaselineConfig:
        if self.method_rates and self.learning_rates:
            raise ValueError(
                "method_rates: expected none beside learning_rates, which every method tries, got both; drop one"
            )
        return self

    def rate_of(self, method: str) -> float:
        """A method's peak rate, where none are tried."""
        return self.method_rates.get(cast(UNetMethod, method), self.learning_rate)

    def rates_to_try(self, method: str) -> tuple[float, ...]:
        """The peak rates of which a method chooses; the published profiles have their own."""
        return self.learning_rates if method in UNET_METHODS else ()

    def stride_of(self, method: str) -> int:
        """What a method's image sizes are multiples of."""
        if method not in UNET_METHODS:
            return 32
        return 8 if self.architecture == "segresnet" else 16

    def decided(self) -> BaselineConfig:
        """Without what nothing depends on."""
        work = self.work if {*FEDERATED} & {*self.methods} else BaselineConfig().work
        rates = {n: r for n, r in self.method_rates.items() if n in self.methods and r != self.learning_rate}
        return self.model_copy(update={"work": work, "method_rates": rates})


class ReadingConfig(Section):
    """How the data set is read and divided among sites.

    Attributes:
        layout: "auto", "folder" (manifest.csv) or a published layout, see docs/data.md.
        window: (low, high) in the files' units, such as Hounsfield units, mapped to 0..1; None: percentiles.
        drop_empty: leave out images whose mask is empty.
        max_broken: share of files that may be unreadable.
        partition: "data" takes the sites that the data names, "group" a site a group, "iid" and "skew" draw `sites`.
        concentration: of the Dirichlet draw of "skew".
        train_images: that each site keeps for training, drawn with the seed, to see what fewer cost; 0 keeps all.
        modality: how images are augmented; "auto" as the layout says, "general" where it says nothing.
        cache: folder where decoded and resized slices are kept between runs; None keeps none, because they are copies
            of patients' images.
    """

    layout: str = "auto"
    window: tuple[float, float] | None = None
    drop_empty: bool = False
    max_broken: Annotated[float, Field(ge=0, le=1)] = 0.05
    partition: Literal["data", "group", "iid", "skew"] = "data"
    sites: Annotated[int, Field(ge=2)] = 4
    concentration: Annotated[float, Field(gt=0)] = 0.5
    train_images: Annotated[int, Field(ge=0)] = 0
    modality: Literal["auto", "general", "ultrasound", "mri", "ct"] = "auto"
    cache: Path | None = None

    @field_validator("layout")
    @classmethod
    def _known(cls, value: str) -> str:
        from ppcmi_fast.data.readers import LAYOUTS

        if value not in ("auto", *LAYOUTS):
            raise ValueError(f"expected auto or one of {', '.join(LAYOUTS)}, got {value!r}")
        return value

    @field_validator("window")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"expected low < high, got {value}")
        return value


class MeasureConfig(Section):
    """How answers are measured; `nsd_tolerance` is in mm, or in pixels where spacing is not known."""

    nsd_tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
