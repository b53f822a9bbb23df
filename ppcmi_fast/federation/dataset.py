"""The data set of a run, and whether it can form a federation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.partition import partition
from ppcmi_fast.data.phantom import MIN_SIZE, PHANTOM_CLASSES
from ppcmi_fast.data.readers import ReadOptions, open_dataset
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.errors import ConfigError, DataError
from ppcmi_fast.federation.config import RunConfig


def read_dataset(config: RunConfig) -> Dataset:
    """The data set of a run, divided among sites as its settings say."""
    reading = config.reading
    options = ReadOptions(reading.drop_empty, reading.max_broken, reading.window, config.classes)
    dataset = open_dataset(config.data, reading.layout, options)
    records = partition(
        dataset.records,
        reading.partition,
        sites=reading.sites,
        concentration=reading.concentration,
        seed=config.seed,
    )
    modality = dataset.modality if reading.modality == "auto" else reading.modality
    return replace(dataset, records=records, modality=modality)


def describe_dataset(
    dataset: Dataset, config: RunConfig, data: Mapping[str, Mapping[str, Arrays]]
) -> dict[str, Any]:
    """What metrics.json says of the data: `data` has each site's images, by part of the split."""
    sites = {
        name: {
            "subjects": len({s for part in parts.values() for s in part.subjects}),
            **{part: len(arrays.images) for part, arrays in parts.items()},
        }
        for name, parts in data.items()
    }
    return {
        "name": dataset.name,
        "classes": dataset.classes,
        "sites": sites,
        "size": config.size,
        "spacing_unit": "mm" if dataset.spacing_known else "px",
        "layout": dataset.layout,
        "modality": dataset.modality,
        "class_names": list(dataset.class_names),
        "empty_masks": dataset.empty_masks,
        "grouped_by_similarity": dataset.grouped_by_similarity,
        "empty_masks_dropped": config.reading.drop_empty,
        "broken": [{"file": file, "reason": reason} for file, reason in dataset.broken],
    }


def check_dataset(dataset: Dataset) -> None:
    """Raise DataError unless the data can form a federation."""
    sites = {record.site for record in dataset.records}
    if len(sites) < 2:
        raise DataError(
            f"{dataset.root}: expected at least 2 sites, got {sorted(sites)}; a federation needs several - name them in"
            " the manifest's column 'site' (published sets: in their sites.csv), or set reading.partition=iid"
        )
    # Keys lie in keys/SITE.key and keys/federation.key, also where file names ignore case.
    taken = [site for site in sites if site.casefold() == "federation"]
    if taken:
        raise DataError(
            f"{dataset.root}: expected sites by names other than {taken[0]!r}, whose key would be that of all sites;"
            " rename it in the manifest"
        )


def check_phantom(config: RunConfig, classes: int) -> None:
    """Raise ConfigError unless the phantoms, where a codec is to be trained on them, fit the data's settings."""
    kind, found = config.codec.phantom, PHANTOM_CLASSES[config.codec.phantom]
    if config.codec.sharing != "phantom":
        return
    if found > classes:
        raise ConfigError(
            f'codec.phantom="{kind}": expected at most the {classes} classes of the data, got {found}; choose another'
            ' phantom, or codec.sharing="averaged"'
        )
    if config.size < MIN_SIZE:
        raise ConfigError(
            f'size: expected at least {MIN_SIZE} for codec.sharing="phantom", got {config.size}'
        )
