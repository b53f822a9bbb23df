"""The main job end to end on phantoms: results, resume after an interruption, trust modes, one image at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from native_layouts import WRITERS
from PIL import Image
from rich.console import Console
from tiny_runs import interrupting

from ppcmi_fast.data.phantom import PHANTOM_CLASSES, write_phantom
from ppcmi_fast.data.readers import open_dataset
from ppcmi_fast.data.readers.dicom_seg import one_series
from ppcmi_fast.data.splits import split_by_subject
from ppcmi_fast.errors import ConfigError, DataError, RunError
from ppcmi_fast.federation import codecs
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.predict import segment_image
from ppcmi_fast.federation.run import FederatedRun, federate
from ppcmi_fast.federation.runfolder import RunFolder
from ppcmi_fast.federation.scoring import summarise_rows
from ppcmi_fast.mapper import training as mapper_training
from ppcmi_fast.metrics import MEASURES, read_scores

SMALL = [
    "size=32",
    "threads=1",
    "codec.width=8",
    "codec.head_width=8",
    "codec.channels=[4,8,8]",
    "codec.rounds=4",
    "codec.local_steps=2",
    "codec.batch=4",
    "mapper.width=8",
    "mapper.steps=12",
    "mapper.batch=4",
    "mapper.views=2",
    "baselines.images=32",
    "baselines.batch=4",
]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(
        "ultrasound", tmp_path_factory.mktemp("data") / "p", sites=2, subjects=3, slices=2, size=32
    )


def settings(phantoms: Path, *more: str) -> RunConfig:
    return RunConfig.load(phantoms, [*SMALL, *more])


@pytest.fixture(scope="module")
def run(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    federate(settings(phantoms), out)
    return out


def read(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


def test_metrics_hold_every_promised_figure(run: Path) -> None:
    metrics = read(run)
    assert set(metrics["methods"]) == {"ppcmi", "ppcmi_float32", "unet_centralised", "unet_local"}
    for method in metrics["methods"].values():
        for measure in MEASURES:
            assert set(method[measure]["site"]) == {"site-0", "site-1"} and set(method[measure]["class"]) == {
                "1",
                "2",
            }
            assert np.isfinite(method[measure]["mean"]) and "ci95" in method[measure]
        assert "volume" not in method
    assert metrics["measures"]["unit"] == "mm" and metrics["measures"]["nsd_tolerance"] == 2.0
    assert {(row["a"], row["b"]) for row in metrics["comparisons"]} == {
        ("ppcmi", other) for other in ("ppcmi_float32", "unet_centralised", "unet_local")
    }
    payload = metrics["payload_bytes"]
    codes = (4 * 16 * 16 + 8 * 8 * 8 + 8 * 4 * 4) // 2
    assert codes < payload["up"] < codes + 600
    assert 16 * 8 * 8 // 2 < payload["down"] < 16 * 8 * 8 // 2 + 400
    assert payload["train_upload_total"] > 0 and payload["codec_rounds_total"] > 0
    assert set(metrics["latency_ms"]) == {"encode", "map", "decode", "total"}
    assert metrics["dataset"]["spacing_unit"] == "mm" and metrics["peak_rss_mb"] > 0


def test_no_path_and_no_key_stand_in_what_a_run_writes(run: Path) -> None:
    text = (run / "metrics.json").read_text()
    assert str(run) not in text and "/tmp" not in text
    secrets = [path.read_bytes() for path in (run / "keys").iterdir()]
    assert len(secrets) == 3
    for path in run.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            content = path.read_bytes()
            assert not any(secret in content or secret.hex().encode() in content for secret in secrets)
    for path in (run / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_finished_run_keeps_no_checkpoint(run: Path) -> None:
    folder = RunFolder(run)
    assert {"codec", "mapper", "unet_centralised"} <= folder.stages().keys()
    assert list(folder.checkpoints.iterdir()) == []


def test_the_figures_are_those_of_the_scores_beside_them(run: Path, phantoms: Path) -> None:
    methods, scores = read(run)["methods"], read_scores(run / "scores.csv")
    assert set(scores) == set(methods)
    for name, rows in scores.items():
        assert {measure: methods[name][measure] for measure in MEASURES} == summarise_rows(rows)
        assert all((phantoms / row.image).is_file() for row in rows)


def test_examples_and_history_fit_the_report(run: Path) -> None:
    examples = np.load(run / "examples.npz")
    count = len(examples["images"])
    assert (
        examples["truth"].shape
        == examples["ppcmi"].shape
        == examples["unet_centralised"].shape
        == (count, 32, 32)
    )
    history = json.loads((run / "history.json").read_text())
    assert set(history) >= {"codec", "mapper", "unet_centralised", "unet_local.site-0", "unet_local.site-1"}
    assert history["codec"][-1]["step"] == 4 and "val" in history["codec"][-1]


def test_one_image_is_segmented_at_its_own_size(run: Path, phantoms: Path, tmp_path: Path) -> None:
    source = sorted((phantoms / "images").iterdir())[0]
    wide = tmp_path / "wide.png"
    Image.open(source).resize((50, 40)).save(wide)
    pixels = segment_image(run, "site-1", wide, tmp_path / "mask.png")
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (40, 50) and sum(pixels.values()) == 2000 and set(np.unique(mask)) == set(pixels)
    with pytest.raises(RunError, match="--site: expected one of site-0, site-1, got 'x'"):
        segment_image(run, "x", wide, tmp_path / "mask.png")
    with pytest.raises(RunError, match="expected the folder of a finished run"):
        segment_image(tmp_path, "site-1", wide, tmp_path / "mask.png")
    with pytest.raises(DataError, match="expected an image file, found nothing"):
        segment_image(run, "site-1", tmp_path / "absent.png", tmp_path / "mask.png")


def dice_means(run: Path) -> dict[str, float]:
    return {name: method["dice"]["mean"] for name, method in read(run)["methods"].items()}


@pytest.mark.parametrize("stage", ["codec", "mapper"])
def test_an_interrupted_run_resumes_to_the_same_result(
    phantoms: Path, run: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "broken"
    monkeypatch.setattr("ppcmi_fast.training.CHECKPOINT_SECONDS", 0.0)
    module, attribute = {
        "codec": (codecs, "learner_loss"),
        "mapper": (mapper_training, "squared_error"),
    }[stage]
    # The runs must share their keys, or quantization differs in a code here and there.
    with monkeypatch.context() as patch:
        patch.setattr(module, attribute, interrupting(getattr(module, attribute), at=9))
        (out / "keys").mkdir(parents=True)
        with pytest.raises(RunError, match="other files"):
            federate(settings(phantoms), out)
        (out / "keys").rmdir()
        patch.setattr("ppcmi_fast.keys.secrets.token_bytes", _keys_of(run))
        with pytest.raises(KeyboardInterrupt):
            federate(settings(phantoms), out)
    federate(settings(phantoms), out, resume=True)
    assert dice_means(out) == pytest.approx(dice_means(run), abs=1e-6)
    sent = [read(path)["payload_bytes"]["codec_rounds_total"] for path in (out, run)]
    # Metadata such as the images' count may differ by a byte; a lost round would be thousands.
    assert sent[0] == pytest.approx(sent[1], rel=1e-3)


def _keys_of(run: Path) -> Any:
    """The keys of a finished run, in the order in which a new run draws them."""
    order = iter([(run / "keys" / f"{name}.key").read_bytes() for name in ("site-0", "site-1", "federation")])
    return lambda count: next(order)


@pytest.mark.parametrize(
    "more",
    [
        ("trust=server",),
        ("trust=sites", "codec.sharing=local"),
        ("trust=sites",),
        ("codec.sharing=phantom", "codec.phantom=ultrasound"),
        ("codec.mask=autoencoder",),
        ("folds=[2,1,1]", "mixing=haar", "bits_up=8", "bits_down=2"),
        ("bits_up=32", "bits_down=32"),
    ],
    ids=" ".join,
)
def test_every_mode_runs(phantoms: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    if "codec.mask=autoencoder" in more:
        more = (*more, "size=64")
    metrics = federate(settings(phantoms, "baselines.methods=[]", *more), tmp_path / "run")
    assert 0 <= metrics["methods"]["ppcmi"]["dice"]["mean"] <= 1
    assert ("ppcmi_float32" in metrics["methods"]) == ("bits_up=32" not in more)


PARTITIONED = {
    "acdc": ("reading.partition=group",),
    "nerve": ("reading.partition=iid", "reading.sites=2", "reading.drop_empty=true"),
}


@pytest.mark.parametrize("layout", PARTITIONED)
def test_a_published_layout_is_federated_as_it_comes(layout: str, tmp_path: Path) -> None:
    # Three subjects a site at least: one each to train, validate and test.
    data = WRITERS[layout](tmp_path / "data", 6)
    chosen = settings(data, "baselines.methods=[]", *PARTITIONED[layout])
    metrics = federate(chosen, tmp_path / "run")
    assert metrics["dataset"]["layout"] == layout and metrics["dataset"]["broken"] == []
    sites = {"acdc": {"DCM", "NOR"}, "nerve": {"site-0", "site-1"}}[layout]
    assert set(metrics["dataset"]["sites"]) == sites
    assert 0 <= metrics["methods"]["ppcmi"]["dice"]["mean"] <= 1
    assert metrics["dataset"]["empty_masks"] == {"acdc": 0, "nerve": 12}[layout]


def test_a_volume_is_segmented_in_its_own_geometry(tmp_path: Path) -> None:
    data = WRITERS["acdc"](tmp_path / "data", 6)
    metrics = federate(settings(data, "baselines.methods=[]", *PARTITIONED["acdc"]), tmp_path / "run")
    # One patient a site, at the end of diastole and of systole.
    assert metrics["measures"]["volumes"] == 4 and metrics["measures"]["slices_left_out"] == 0
    assert set(metrics["methods"]["ppcmi"]["volume"]["hd95"]["class"]) == {"1", "2", "3"}
    source, out = data / "patient001" / "patient001_frame01.nii.gz", tmp_path / "mask.nii.gz"
    voxels = segment_image(tmp_path / "run", "NOR", source, out)
    before, after = sitk.ReadImage(str(source)), sitk.ReadImage(str(out))
    assert sitk.GetArrayFromImage(after).shape == (4, 36, 30) and sum(voxels.values()) == 4 * 36 * 30
    for name in ("Origin", "Spacing", "Direction"):
        assert getattr(before, f"Get{name}")() == pytest.approx(getattr(after, f"Get{name}")())
    assert set(np.unique(sitk.GetArrayFromImage(after)).tolist()) == set(voxels)
    with pytest.raises(DataError, match=r"--out: expected a name ending in \.nii or .* got .*mask\.png"):
        segment_image(tmp_path / "run", "NOR", source, tmp_path / "mask.png")


def test_dicom_gives_dicom(tmp_path: Path) -> None:
    data, out = WRITERS["dicom"](tmp_path / "data", 6), tmp_path / "seg.dcm"
    sites = ("reading.partition=iid", "reading.sites=2", f"reading.cache={tmp_path / 'cache'}")
    metrics = federate(settings(data, "baselines.methods=[]", *sites), tmp_path / "run")
    assert metrics["dataset"]["class_names"] == ["liver", "spleen"]
    assert "cache" not in metrics["config"]["reading"] and any((tmp_path / "cache").iterdir())
    voxels = segment_image(tmp_path / "run", "site-0", data / "p1" / "ct", out)
    assert sum(voxels.values()) == 4 * 32 * 40
    found = hd.seg.segread(out)
    assert [str(segment.SegmentLabel) for segment in found.SegmentSequence] == ["liver", "spleen"]
    headers = one_series(data / "p1" / "ct")
    assert str(found.FrameOfReferenceUID) == "1.2.826.1.1"
    stack = found.get_pixels_by_source_instance(
        [header.instance for header in headers],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    counts = dict(zip(*(v.tolist() for v in np.unique(stack, return_counts=True)), strict=True))
    assert counts == voxels
    # One slice of the series gives that slice's segments.
    one = segment_image(tmp_path / "run", "site-0", headers[0].path, tmp_path / "one.dcm")
    assert sum(one.values()) == 32 * 40
    with pytest.raises(DataError, match=r"--out: expected a name ending in \.dcm for ct"):
        segment_image(tmp_path / "run", "site-0", data / "p1" / "ct", tmp_path / "mask.nii.gz")


def test_a_layout_without_sites_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"or set reading\.partition=iid"):
        federate(settings(WRITERS["psfhs"](tmp_path / "data")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reading.layout=dicomdir", "expected auto or one of folder, psfhs"),
        ("reading.window=[5,1]", "expected low < high"),
        ("reading.max_broken=2", "less than or equal to 1"),
        ("reading.sites=1", "greater than or equal to 2"),
    ],
)
def test_wrong_settings_of_reading_are_named(phantoms: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(phantoms, setting)


def test_one_site_is_no_federation(tmp_path: Path) -> None:
    data = write_phantom("cardiac", tmp_path / "p", sites=1, subjects=3, slices=1, size=32)
    with pytest.raises(DataError, match="expected at least 2 sites"):
        federate(settings(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_site_by_the_name_of_the_common_key_is_refused(phantoms: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantoms, tmp_path / "p")
    manifest = (data / "manifest.csv").read_text()
    (data / "manifest.csv").write_text(manifest.replace("site-1", "Federation"))
    with pytest.raises(
        DataError, match="names other than 'Federation', whose key would be that of all sites"
    ):
        federate(settings(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_phantoms_that_do_not_fit_the_settings_are_named_at_once(tmp_path: Path) -> None:
    data = write_phantom("cardiac", tmp_path / "p", sites=2, subjects=3, slices=1, size=32)
    phantom = ("codec.sharing=phantom", "codec.phantom=ultrasound")
    with pytest.raises(ConfigError, match="expected at most the 2 classes of the data, got 3"):
        federate(settings(data, *phantom), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"size: expected at least 32 .* got 16"):
        federate(settings(data, "codec.sharing=phantom", "size=16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_phantoms_have_the_classes_that_are_said_of_them(tmp_path: Path) -> None:
    for kind, classes in PHANTOM_CLASSES.items():
        assert open_dataset(write_phantom(kind, tmp_path / kind, sites=1, subjects=2)).classes == classes


@pytest.mark.parametrize("key", ["federation", "site-0"])
def test_a_lost_key_is_never_replaced_in_silence(run: Path, phantoms: Path, tmp_path: Path, key: str) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "keys" / f"{key}.key").unlink()
    with pytest.raises(RunError, match=rf"{key}.key: expected the key with which this run was started"):
        segment_image(copy, "site-0", next((phantoms / "images").iterdir()), tmp_path / "mask.png")
    with pytest.raises(RunError, match=rf"{key}.key: expected the key with which this run was started"):
        federate(settings(phantoms), copy, resume=True)
    assert not (copy / "keys" / f"{key}.key").exists()


def test_a_run_resumes_only_on_the_data_it_was_started_with(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = shutil.copytree(phantoms, tmp_path / "p"), tmp_path / "run"
    monkeypatch.setattr("ppcmi_fast.training.CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(codecs, "learner_loss", interrupting(codecs.learner_loss, at=9))
        federate(settings(data), out)
    manifest = (data / "manifest.csv").read_text()
    (data / "manifest.csv").write_text(manifest.replace("ultrasound-1-002,", "ultrasound-1-another,"))
    with pytest.raises(RunError, match="split.json: expected the subjects with which this run was started"):
        federate(settings(data), out, resume=True)
    (data / "manifest.csv").write_text(manifest)
    for path in (data / "masks").iterdir():
        with Image.open(path) as mask:
            merged = np.minimum(np.asarray(mask), 1)
        Image.fromarray(merged).save(path)
    with pytest.raises(RunError, match="expected the codecs of these sites and classes, got others"):
        federate(settings(data), out, resume=True)


def test_the_budget_counts_the_steps_that_were_made(phantoms: Path, tmp_path: Path) -> None:
    config, dataset = settings(phantoms), open_dataset(phantoms)
    folder = RunFolder.open(tmp_path / "run", config, resume=False, overwrite=False)
    run = FederatedRun(config, folder, dataset, split_by_subject(dataset.records), Console(quiet=True))
    codec_images = 4 * 2 * 4 * 2  # rounds, local steps, batch, sites
    assert run.results.budget() == codec_images + 12 * 4
    folder.finish("mapper", {"steps": 5})
    assert run.results.budget() == codec_images + 5 * 4


def test_bad_data_stops_before_the_run_folder_exists(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected values 0\.\.1, got 0, 1, 2"):
        federate(settings(phantoms, "classes=2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
