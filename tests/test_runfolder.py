"""The run folder: start, refuse, resume, overwrite; nothing foreign is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppcmi_fast.errors import ConfigError, RunError
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.runfolder import RunFolder, load_module, read_json, save_module


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    data = tmp_path / "data"
    data.mkdir()
    return RunConfig.load(data)


def test_second_start_is_refused_then_resumed_then_replaced(tmp_path: Path, config: RunConfig) -> None:
    root = tmp_path / "run"
    folder = RunFolder.open(root, config, resume=False, overwrite=False)
    folder.finish("codec", {"seconds": 1.0})
    with pytest.raises(RunError, match=r"already holds a run; use --resume .* or --overwrite"):
        RunFolder.open(root, config, resume=False, overwrite=False)
    assert RunFolder.open(root, config, resume=True, overwrite=False).done("codec") == {"seconds": 1.0}
    assert RunFolder.open(root, config, resume=False, overwrite=True).done("codec") is None


def test_resume_with_other_settings_is_refused(tmp_path: Path, config: RunConfig) -> None:
    root = tmp_path / "run"
    RunFolder.open(root, config, resume=False, overwrite=False)
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(RunError, match="other settings"):
        RunFolder.open(root, other, resume=True, overwrite=False)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, config: RunConfig) -> None:
    root = tmp_path / "thesis"
    root.mkdir()
    (root / "chapter.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="other files"):
            RunFolder.open(root, config, resume=False, overwrite=overwrite)
    assert (root / "chapter.txt").read_text() == "years of work"


def test_overwrite_keeps_what_this_program_did_not_write(tmp_path: Path, config: RunConfig) -> None:
    root = tmp_path / "run"
    folder = RunFolder.open(root, config, resume=False, overwrite=False)
    (root / "notes.md").write_text("mine")
    folder.finish("codec", {})
    RunFolder.open(root, config, resume=False, overwrite=True)
    assert (root / "notes.md").read_text() == "mine" and not (root / "stages.json").exists()


def test_overwrite_leaves_no_checkpoint_behind_a_link(tmp_path: Path, config: RunConfig) -> None:
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder = RunFolder.open(root, config, resume=False, overwrite=False)
    folder.checkpoints.rmdir()
    elsewhere.mkdir()
    (elsewhere / "codec.safetensors").write_bytes(b"of the old run")
    folder.checkpoints.symlink_to(elsewhere)
    assert folder.started
    folder = RunFolder.open(root, config, resume=False, overwrite=True)
    assert not folder.started and list(folder.checkpoints.iterdir()) == []
    assert (elsewhere / "codec.safetensors").exists()


def test_a_finished_stage_leaves_no_checkpoint(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.open(tmp_path / "run", config, resume=False, overwrite=False)
    for stage in ("codec", "fedavg@0.001", "fedavg@0.01"):
        folder.checkpoint(stage).write_bytes(b"of a stage under way")
    folder.finish("fedavg@0.001", {})
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "codec.safetensors",
        "fedavg@0.01.safetensors",
    ]
    # As a crash right after the stage's line leaves it, or a version that kept them.
    folder.checkpoint("fedavg@0.001").write_bytes(b"of a finished stage")
    folder = RunFolder.open(tmp_path / "run", config, resume=True, overwrite=False)
    assert not folder.checkpoint("fedavg@0.001").exists()
    assert folder.checkpoint("fedavg@0.01").exists() and folder.checkpoint("codec").exists()


def test_a_run_goes_on_with_its_own_split_only(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.open(tmp_path / "run", config, resume=False, overwrite=False)
    split = {"train": {"a": ["s1", "s2"]}, "test": {"a": ["s3"]}}
    folder.check_split(split)
    folder.check_split(split)
    with pytest.raises(
        RunError, match="split.json: expected the subjects with which this run was started where"
    ):
        folder.check_split({"train": {"a": ["s1", "s3"]}, "test": {"a": ["s2"]}})
    assert read_json(folder.root / "split.json") == split


def test_a_run_of_a_version_before_goes_on_as_it_did_then(tmp_path: Path) -> None:
    then = RunConfig.build(
        {"data": str(tmp_path), "codec": {"work": "equal"}, "mapper": {"start": "nothing"}},
        ["mask_mixing=hadamard", "mask_weights=[1.0,1.0]"],
    )
    folder = RunFolder.open(tmp_path / "run", then, resume=False, overwrite=False)
    folder.finish("codec", {})
    whole = folder.config_path.read_text()
    weights = "mask_weights = [\n    1.0,\n    1.0,\n]\n"
    recent = whole.replace('mask_mixing = "hadamard"\n', "").replace(weights, "")
    folder.config_path.write_text(recent)
    assert RunConfig.load(folder.config_path) == then
    assert RunFolder.open(tmp_path / "run", then, resume=True, overwrite=False).started
    with pytest.raises(
        RunError,
        match=r"the run was started with other settings than these \(mask_mixing: hadamard -> haar; mask_weights: ",
    ):
        RunFolder.open(tmp_path / "run", RunConfig.load(tmp_path), resume=True, overwrite=False)
    # Longer ago the first weights of networks were public: what is trained is kept, what is not is not trained on.
    for line in ('work = "equal"\n', 'start = "nothing"\n'):
        assert recent.count(line) == 1
        recent = recent.replace(line, "")
    folder.config_path.write_text(recent)
    assert RunConfig.load(folder.config_path) == then
    with pytest.raises(RunError, match="was begun by a version that had fewer settings"):
        RunFolder.open(tmp_path / "run", then, resume=True, overwrite=False)
    folder.finish("mapper", {})
    assert RunFolder.open(tmp_path / "run", then, resume=True, overwrite=False).started


def test_what_is_no_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'data = "{tmp_path}"\nbaselines = 3\n')
    (tmp_path / "stages.json").write_text("{}")
    with pytest.raises(ConfigError, match="baselines: Input should be"):
        RunConfig.load(tmp_path / "config.toml")


def test_a_config_of_another_program_is_left_alone(tmp_path: Path, config: RunConfig) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (root / "config.toml").write_text('title = "mine"\n')
    with pytest.raises(RunError, match="expected the settings of a run, got .*choose another --out"):
        RunFolder.open(root, config, resume=False, overwrite=True)
    assert (root / "config.toml").read_text() == 'title = "mine"\n'


def test_both_flags_and_a_file_are_refused(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(RunError, match="at most one of them"):
        RunFolder.open(tmp_path / "run", config, resume=True, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="expected a folder"):
        RunFolder.open(tmp_path / "file", config, resume=False, overwrite=False)


def test_key_folder_is_private(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.open(tmp_path / "run", config, resume=False, overwrite=False)
    assert folder.keys.stat().st_mode & 0o077 == 0


def test_modules_and_json_survive_and_damage_is_named(tmp_path: Path) -> None:
    net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    path = tmp_path / "net.safetensors"
    save_module(path, net)
    load_module(path, other)
    assert torch.equal(net.weight, other.weight) and not other.training
    path.write_bytes(b"damaged")
    with pytest.raises(RunError, match="expected this network's weights"):
        load_module(path, other)
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(RunError, match="expected a JSON file"):
        read_json(tmp_path / "stages.json")
