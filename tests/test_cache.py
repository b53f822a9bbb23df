"""The slice cache: what it keeps, when it decodes anew, and that it never stops a run."""

from __future__ import annotations

import multiprocessing
import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from native_layouts import WRITERS, fumpe, msd, nerve

from ppcmi_fast.data import cache as module
from ppcmi_fast.data.arrays import load_arrays
from ppcmi_fast.data.cache import Slice, SliceCache, decode_resized
from ppcmi_fast.data.readers import open_dataset
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.errors import DataError


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(one: Slice, other: Slice) -> bool:
    return (
        np.array_equal(one.pixels, other.pixels)
        and np.array_equal(one.mask, other.mask)
        and one.shape == other.shape
        and one.mask.dtype == other.mask.dtype
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(nerve(tmp_path / "set"))


@pytest.mark.parametrize("layout", WRITERS)
def test_what_is_found_is_what_would_be_decoded(layout: str, tmp_path: Path) -> None:
    dataset = open_dataset(WRITERS[layout](tmp_path / "set"))
    cache = SliceCache(tmp_path / "cache")
    first = load_arrays(dataset, 24, cache=cache)
    second = load_arrays(dataset, 24, cache=cache)
    assert (cache.hits, cache.misses) == (len(dataset.records), len(dataset.records))
    plain = load_arrays(dataset, 24)
    for found in (first, second):
        assert torch.equal(found.images, plain.images) and torch.equal(found.masks, plain.masks)


def test_entries_are_their_owners_alone(tmp_path: Path, dataset: Dataset) -> None:
    SliceCache(tmp_path / "cache").get(dataset.source, dataset.records[0], 16)
    (entry,) = entries(tmp_path / "cache")
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["1_1.tif", "1_1_mask.tif"])
def test_a_changed_source_of_the_same_length_and_time_is_decoded_anew(
    tmp_path: Path, dataset: Dataset, name: str
) -> None:
    record, path = dataset.records[0], dataset.root / "train" / name
    before = SliceCache(tmp_path / "cache").get(dataset.source, record, 16)
    stat_before = path.stat()
    tifffile.imwrite(path, np.roll(tifffile.imread(path), 5, 0))
    os.utime(path, ns=(stat_before.st_atime_ns, stat_before.st_mtime_ns))
    assert path.stat().st_size == stat_before.st_size
    module._file_digest.cache_clear()  # as in a new process
    cache = SliceCache(tmp_path / "cache")
    after = cache.get(dataset.source, record, 16)
    assert (cache.hits, cache.misses) == (0, 1) and not same(after, before)


@pytest.mark.parametrize("write", [msd, fumpe])
def test_a_volume_that_changes_loses_all_of_its_slices(tmp_path: Path, write: Callable[..., Path]) -> None:
    dataset = open_dataset(write(tmp_path / "set"))
    load_arrays(dataset, 16, cache=SliceCache(tmp_path / "cache"))
    record = dataset.records[0]
    changed = record.image if record.image.is_file() else next(iter(record.image.iterdir()))
    stored = changed.stat()
    os.utime(changed, ns=(stored.st_atime_ns, stored.st_mtime_ns + 10**9))
    touched = SliceCache(tmp_path / "cache")
    load_arrays(dataset, 16, cache=touched)
    assert touched.misses == 0, "a new time alone is no new content"
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    own = [r for r in dataset.records if r.volume == record.volume]
    assert own and not any(touched._path(dataset.source, each, 16).exists() for each in own)


def test_size_and_slice_are_part_of_the_name(tmp_path: Path) -> None:
    dataset = open_dataset(msd(tmp_path / "set"))
    cache = SliceCache(tmp_path / "cache")
    names = {cache._path(dataset.source, record, size) for record in dataset.records[:6] for size in (16, 24)}
    assert len(names) == 12


def test_a_set_that_moves_keeps_its_entries(tmp_path: Path, dataset: Dataset) -> None:
    load_arrays(dataset, 16, cache=SliceCache(tmp_path / "cache"))
    moved = open_dataset(dataset.root.rename(tmp_path / "elsewhere"))
    cache = SliceCache(tmp_path / "cache")
    load_arrays(moved, 16, cache=cache)
    assert cache.misses == 0


@pytest.mark.parametrize("keep", [0, 10, 40, -3])
def test_a_damaged_entry_is_made_again(tmp_path: Path, dataset: Dataset, keep: int) -> None:
    record = dataset.records[1]
    SliceCache(tmp_path / "cache").get(dataset.source, record, 16)
    (entry,) = entries(tmp_path / "cache")
    whole = entry.read_bytes()
    for damaged in (whole[:keep], whole[:-1] + bytes([whole[-1] ^ 1])):
        entry.write_bytes(damaged)
        cache = SliceCache(tmp_path / "cache")
        assert same(cache.get(dataset.source, record, 16), decode_resized(dataset.source, record, 16))
        assert cache.misses == 1 and entry.read_bytes() == whole


def fill(folder: Path, root: Path) -> None:
    dataset = open_dataset(root)
    cache = SliceCache(folder)
    for _ in range(5):
        for record in dataset.records:
            found = cache.get(dataset.source, record, 16)
            if not same(found, decode_resized(dataset.source, record, 16)):
                os._exit(3)


def test_two_processes_fill_one_folder(tmp_path: Path, dataset: Dataset) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(tmp_path / "cache", dataset.root)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = entries(tmp_path / "cache")
    assert len(found) == len(dataset.records) and all(path.suffix == ".slice" for path in found)


def test_a_read_only_cache_warns_once_and_still_serves(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = dataset.records[:3]
    SliceCache(tmp_path / "cache").get(dataset.source, first, 16)

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, who can write everywhere.
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    cache = SliceCache(tmp_path / "cache")
    with pytest.warns(
        UserWarning,
        match=r"cache: expected a folder that can be written, got Permission denied.*reading\.cache",
    ):
        cache.get(dataset.source, second, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cache.get(dataset.source, third, 16), decode_resized(dataset.source, third, 16))
    cache.get(dataset.source, first, 16)
    assert (cache.hits, cache.misses) == (1, 2) and len(entries(tmp_path / "cache")) == 1


def test_a_cache_below_a_file_is_no_cache(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "file").write_text("x")
    cache = SliceCache(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="make it writable, free space, or choose another folder"):
        cache.get(dataset.source, dataset.records[0], 16)


def test_a_source_that_is_gone_is_named(tmp_path: Path, dataset: Dataset) -> None:
    dataset.records[0].image.unlink()
    with pytest.raises(DataError, match=r"1_1.tif: expected a readable file, got No such file"):
        SliceCache(tmp_path / "cache").get(dataset.source, dataset.records[0], 16)
