"""Run settings: TOML round trip, overrides, and each contradiction named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.config import _BEFORE, RunConfig
from ppcmi_fast.federation.sections import CodecConfig

# What every finished run tells of itself whose networks others may take over; see `is_whole`. No setting comes to it.
TOLD_FROM_THE_FIRST = {
    "": "data size classes trust federation_id epoch mixing folds bits_up bits_down seed threads device late_sites"
    " calibrate",
    "reading": "layout window drop_empty max_broken partition sites concentration train_images modality cache",
    "codec": "sharing work scales channels width blocks head_width reconstruction rounds local_steps batch"
    " learning_rate phantom mask mask_block mask_rank",
    "mapper": "start width blocks steps batch learning_rate weight_decay views balance patience",
    "tuning": "rounds local_steps batch learning_rate mapper_learning_rate",
    "baselines": "methods architecture batch learning_rate learning_rates rounds mu published_width images",
    "measures": "nsd_tolerance",
}


def test_of_a_new_setting_it_is_noted_what_was_done_before(tmp_path: Path) -> None:
    now = RunConfig.load(tmp_path).model_dump()
    sections = {name: value for name, value in now.items() if isinstance(value, dict)}
    sections[""] = {name: value for name, value in now.items() if name not in sections}
    assert set(sections) == set(TOLD_FROM_THE_FIRST)
    for section, names in TOLD_FROM_THE_FIRST.items():
        noted = (
            _BEFORE.get(section, {}) if section else {n: v for n, v in _BEFORE.items() if n not in sections}
        )
        missing = set(sections[section]) - set(names.split()) - set(noted)
        assert not missing, (
            f"{section}: note {missing} in _BEFORE, or finished runs are trained again for want of it"
        )
        assert set(noted) <= set(sections[section])


def test_defaults_are_the_promised_ones(tmp_path: Path) -> None:
    config = RunConfig.load(tmp_path)
    assert (config.trust, config.bits_up, config.bits_down, config.size) == ("federation", 4, 4, 128)
    assert config.codec.sharing == "averaged" and config.data == tmp_path.resolve()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["size=96"], ((4, 8, 16), 8, 16)),
        (["size=88", "baselines.methods=[]"], ((2, 4, 8), 4, 8)),
        (["size=32", "codec.rounds=1"], ((2, 4, 8), 4, 8)),
        (["size=40", "baselines.architecture=segresnet"], ((2, 4, 8), 4, 8)),
        (["size=64.0"], ((2, 4, 8), 4, 8)),
        (["size=64", "codec.mask_rank=16"], ((2, 4, 8), 4, 16)),
        (["size=64", "codec.mask_block=8"], ((2, 4, 8), 8, 16)),
        (["size=64", "codec.scales=[4,8,16]"], ((4, 8, 16), 4, 8)),
    ],
)
def test_small_images_have_finer_grids_unless_told(tmp_path: Path, settings: list[str], found: Any) -> None:
    codec = RunConfig.load(tmp_path, settings).codec
    assert (codec.scales, codec.mask_block, codec.mask_rank) == found


def test_defaults_of_small_images_yield_to_a_section_that_is_made(tmp_path: Path) -> None:
    made = RunConfig(data=tmp_path, size=64, codec=CodecConfig(rounds=2, mask_block=8)).codec
    assert (made.rounds, made.scales, made.mask_block, made.mask_rank) == (2, (2, 4, 8), 8, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["size=48", 'baselines.methods=["published"]'],
            "size: expected a multiple of 32 for published, got 48",
        ),
        (
            ["size=40", "codec.mask=autoencoder", "baselines.methods=[]"],
            "multiple of the mask autoencoder's stride 16",
        ),
    ],
)
def test_sizes_that_not_all_parts_take(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.load(tmp_path, settings)


def test_toml_round_trip(tmp_path: Path) -> None:
    config = RunConfig.load(
        tmp_path, ["trust=sites", "codec.sharing=local", "mapper.steps=7", "folds=[2,1,1]"]
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert RunConfig.load(path) == config
    assert (config.mapper.steps, config.folds) == (7, (2, 1, 1))


def test_data_in_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text('data = "images"\n')
    assert RunConfig.load(path).data == (tmp_path / "images").resolve()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bits_up=5", "bits_up: Input should be 2, 4, 8 or 32"),
        ("federation_id=", "federation_id: .* expected printable text without"),
        ("federation_id=a|b", "federation_id: .* expected printable text without"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("seed=3000000000", "seed: Input should be less than 2147483648"),
        ("codec.roundz=1", "codec.roundz: Extra inputs are not permitted"),
        (
            "baselines.method_rates.fedavgg=0.1",
            "baselines.method_rates.fedavgg.*: Input should be .*'fedavg'",
        ),
        ("baselines.method_rates.published=0.1", "baselines.method_rates.published.*: Input should be"),
        ("baselines.method_rates.fedavg=0", "baselines.method_rates.fedavg: Input should be greater than 0"),
        (
            "size=88",
            "size: expected a multiple of 16 for unet_centralised, got 88; choose another, or leave it out of",
        ),
        ("codec.mask_rank=65", "expected at most mask_block.2 = 64, got 65; set codec.mask_block as well"),
        ("baselines={learning_rates=[0.1],method_rates={fedavg=0.1}}", "expected none beside learning_rates"),
        ("size=100", r"size: expected a multiple of scale 8 x fold 1 = 8, got 100"),
        ("codec.sharing=local", r'expected trust="sites"'),
        ("folds=[1,1]", "expected one entry per scale, got 3, 3 and 2"),
        ("codec.mask_block=6", "mask_block"),
        ("codec.scales=[8,4,16]", "scales: expected ascending powers of two"),
        ("codec.channels=[0,8,8]", "channels: expected 3 positive numbers"),
        (
            "codec.channels=[5,8,8]",
            "codec.channels at scale 4 x fold 1: expected a multiple of 2 at 4 bits, got 5",
        ),
        ("codec.channels=[134,8,8]", 'odd m <= 63, got 134; set mixing="haar"'),
        ("mask_mixing=dct", "mask_mixing: Input should be 'hadamard' or 'haar'"),
        ("mask_weights=[0.0,1.0]", "mask_weights.0: Input should be greater than 0"),
        ("mask_weights=[1.0,inf]", "mask_weights.1: Input should be a finite number"),
        ("mask_weights=[1.0]", "mask_weights.1: Field required"),
        ("codec.mask_rank=9", "codec.mask_rank: expected a multiple of 2 at 4 bits, got 9"),
        ("codec.mask_rank=65", r"codec.mask_rank: expected at most mask_block\^2 = 64, got 65"),
        ("trust=nobody", "trust: Input should be"),
        ("nonsense", r"--set: expected name=value"),
        ("data.x=1", "data is a setting, not a section"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.load(tmp_path, [override])


def test_missing_path_and_broken_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a data folder or a TOML file, found nothing"):
        RunConfig.load(tmp_path / "absent")
    broken = tmp_path / "broken.toml"
    broken.write_text("size = = 3")
    with pytest.raises(ConfigError, match="expected TOML"):
        RunConfig.load(broken)


def test_classes_that_the_mixing_cannot_serve_are_named(tmp_path: Path) -> None:
    config = RunConfig.load(tmp_path)
    config.check_classes(4)
    # The default takes any number of them.
    config.check_classes(68)
    hadamard = RunConfig.load(tmp_path, ["mask_mixing=hadamard"])
    hadamard.check_classes(4)
    with pytest.raises(
        ConfigError, match=r'x codec.mask_rank: expected m \* 2\^a .* got 1072; set mask_mixing="haar"'
    ):
        hadamard.check_classes(68)
