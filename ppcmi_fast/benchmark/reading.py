"""Whether reading keeps up with training: images a second decoded, from the cache, augmented, and trained on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from ppcmi_fast.baselines.architectures import make_network
from ppcmi_fast.data import cache as slice_cache
from ppcmi_fast.data.arrays import Arrays, load_arrays
from ppcmi_fast.data.augment import augment
from ppcmi_fast.data.cache import SliceCache
from ppcmi_fast.data.readers import open_dataset
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.environment import describe_environment

BATCH = 16
TURNS = 5


def _rate(images: int, call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return images / (time.perf_counter() - start)


def _reading(dataset: Dataset, size: int, folder: Path) -> dict[str, float]:
    """Images a second, decoded and from a filled cache, in turns."""
    count = len(dataset.records)
    load_arrays(dataset, size, cache=SliceCache(folder))
    rates: dict[str, list[float]] = {"decoded": [], "cached": []}
    for _ in range(TURNS):
        # What a process remembers of the files' contents is no part of what a new run finds.
        slice_cache.forget_digests()
        rates["cached"].append(_rate(count, lambda: load_arrays(dataset, size, cache=SliceCache(folder))))
        rates["decoded"].append(_rate(count, lambda: load_arrays(dataset, size)))
    return {name: round(median(values), 1) for name, values in rates.items()}


def _training(data: Arrays, classes: int) -> dict[str, float]:
    """Images a second through augmentation, and through a step of the baseline U-Net."""
    net = make_network("unet", classes, 0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(data.images), (BATCH,), generator=generator)
    images, masks = data.images[index], data.masks[index]

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), masks).backward()
        optimizer.step()

    step()
    augment(images, masks, generator, data.modality)
    rates: dict[str, list[float]] = {"augmented": [], "unet_step": []}
    for _ in range(TURNS):
        rates["augmented"].append(_rate(BATCH, lambda: augment(images, masks, generator, data.modality)))
        rates["unet_step"].append(_rate(BATCH, step))
    return {name: round(median(values), 1) for name, values in rates.items()}


def measure_reading(root: Path, size: int, limit: int) -> dict[str, Any]:
    """Medians of images a second on one data set.

    Args:
        root: a data set in any layout.
        size: edge in pixels to which images are resized.
        limit: images to read at most; volumes are taken whole.

    Raises:
        DataError: the data set cannot be read.
    """
    dataset = open_dataset(root)
    volumes = [record.volume for record in dataset.records[:limit]]
    kept = [r for i, r in enumerate(dataset.records) if i < limit or (r.volume and r.volume == volumes[-1])]
    part = replace(dataset, records=kept)
    with tempfile.TemporaryDirectory() as folder:
        reading = _reading(part, size, Path(folder))
        cached_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*.slice"))
    training = _training(load_arrays(part, size), dataset.classes)
    return {
        "dataset": dataset.name,
        "layout": dataset.layout,
        "images": len(kept),
        "size": size,
        "images_per_second": {**reading, **training},
        "cache_bytes_per_image": round(cached_bytes / len(kept)),
    }


def measure_folders(roots: list[Path], size: int, limit: int, command: str) -> dict[str, Any]:
    """`measure_reading` of several data sets on one thread, with the machine."""
    torch.set_num_threads(1)
    sets = [measure_reading(root, size, limit) for root in roots]
    return {"command": command, "environment": describe_environment(threads=1), "sets": sets}
