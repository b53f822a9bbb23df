"""A run folder as `federate` leaves it, made-up numbers and pictures, for tests of what reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SITES = {"north": 0.86, "south": 0.81, "west": 0.74}
METHODS = {"ppcmi": 0.0, "ppcmi_float32": 0.004, "unet_centralised": 0.02, "unet_local": -0.09}


def add_measures(metrics: dict[str, Any]) -> None:
    """What metrics.json holds since the measures beside Dice, HD95 and ASD, for a data set of volumes."""
    for method in metrics["methods"].values():
        dice, hd95 = method["dice"], method["hd95"]
        dice["ci95"] = [dice["mean"] - 0.02, dice["mean"] + 0.015]
        dice["site_class"] = {
            site: {label: value - 0.01 * int(label) for label in dice["class"]}
            for site, value in dice["site"].items()
        }
        hd95["ci95"] = [hd95["mean"] - 1, hd95["mean"] + 1]
        method["asd"]["ci95"] = None
        method["nsd"] = {**dice, "mean": dice["mean"] - 0.1}
        method["hd95_pooled"] = {**hd95, "mean": hd95["mean"] - 0.5}
        method["sensitivity"] = dice
        method["volume"] = {"dice": {**dice, "mean": dice["mean"] + 0.03, "ci95": None}, "hd95": hd95}
    labels = list(metrics["methods"]["ppcmi"]["dice"]["class"])
    metrics["measures"] = {
        "unit": metrics["dataset"]["spacing_unit"],
        "nsd_tolerance": 2.0,
        "hd95_definitions": {"hd95": "the larger of two", "hd95_pooled": "both together"},
        "empty_mask_policy": "both masks empty: 1; one mask empty: 0 and the diagonal",
        "bootstrap_resamples": 1000,
        "images": 30,
        "empty_truths": dict.fromkeys(labels, 3),
        "volumes": 9,
        "empty_truth_volumes": dict.fromkeys(labels, 1),
        "slices_left_out": 4,
    }
    metrics["comparisons"] = [
        {
            "a": "ppcmi",
            "b": other,
            "measure": measure,
            "difference": difference,
            "ci95": [difference - 0.05, difference + 0.05] if p else None,
            "p": p,
            "p_holm": p,
            "subjects": 9 if p else 5,
            **({} if p else {"reason": "5 subjects; too few"}),
        }
        for other, measure, difference, p in (
            ("unet_local", "dice", 0.09, 0.0002),
            ("unet_local", "hd95", 1.8, 0.03),
            ("unet_centralised", "dice", -0.02, 0.4),
            ("unet_centralised", "hd95", 0.01, 0.012),
            ("ppcmi_float32", "dice", -0.004, None),
            ("ppcmi_float32", "asd", 0.1, 0.5),
        )
    ]


def make_metrics(*, classes: int = 3, unit: str = "mm", **changes: Any) -> dict[str, Any]:
    """The dictionary of metrics.json as first versions wrote it; `changes` replace top-level keys."""
    methods: dict[str, Any] = {}
    for name, shift in METHODS.items():
        dice = {site: value + shift for site, value in SITES.items()}
        methods[name] = {
            "dice": {
                "mean": sum(dice.values()) / len(dice),
                "site": dice,
                "class": {str(c): 0.8 + shift + 0.01 * c for c in range(1, classes)},
            },
            "hd95": {"mean": 6.1 - 20 * shift, "site": dict.fromkeys(SITES, 6.0), "class": {"1": 5.0}},
            "asd": {"mean": 1.9 - 5 * shift, "site": dict.fromkeys(SITES, 2.0), "class": {"1": 1.5}},
            "images_seen": 24000,
            "seconds": 410.5,
            "parameters": 812345,
        }
    metrics: dict[str, Any] = {
        "schema": 1,
        "command": "ppcmi federate data --out runs/x",
        "dataset": {
            "name": "phantoms",
            "classes": classes,
            "sites": {site: {"subjects": 10, "train": 24, "val": 6, "test": 10} for site in SITES},
            "size": 128,
            "spacing_unit": unit,
        },
        "config": {
            "data": "/somewhere/data",
            "trust": "federation",
            "bits_up": 4,
            "bits_down": 4,
            "size": 128,
        },
        "methods": methods,
        "payload_bytes": {
            "up": 12544.0,
            "down": 2304.0,
            "train_upload_total": 9_300_000,
            "codec_rounds_total": 41_000_000,
            "registration_total": 120_000,
        },
        "latency_ms": {"encode": 3.1, "map": 5.4, "decode": 1.2, "total": 9.7},
        "seconds": {
            "codec": 300.0,
            "upload": 12.0,
            "mapper": 410.0,
            "baselines": 500.0,
            "evaluate": 20.0,
            "total": 1260.0,
        },
        "peak_rss_mb": 2100.0,
        "environment": {"python": "3.11", "threads": 2, "isa": ["avx2"], "libraries": {"torch": "2.13.0"}},
    }
    metrics.update(changes)
    return metrics


def make_history() -> dict[str, list[dict[str, Any]]]:
    """Learning curves of four stages, two of them of one kind."""
    history: dict[str, list[dict[str, Any]]] = {}
    for number, stage in enumerate(
        ("codec", "mapper", "unet_centralised", "unet_local.north", "unet_local.south")
    ):
        rng = np.random.default_rng(number)
        steps = np.arange(1, 800, 2)
        losses = np.exp(-steps / 200) + 0.1 + 0.03 * rng.random(len(steps))
        history[stage] = [
            {"step": int(step), "loss": float(loss), "val": float(0.9 - loss / 2) if step % 50 == 1 else None}
            for step, loss in zip(steps, losses, strict=True)
        ]
    return history


def make_examples(classes: int = 3, per_site: int = 6, size: int = 96) -> dict[str, npt.NDArray[Any]]:
    """Pictures with two structures each and three answers that miss by different amounts."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size]
    images, truths, sites = [], [], []
    answers: dict[str, list[npt.NDArray[np.uint8]]] = {
        "ppcmi": [],
        "ppcmi_float32": [],
        "unet_centralised": [],
    }

    def draw(cy: float, cx: float, radius: float) -> npt.NDArray[np.uint8]:
        distance = np.hypot(y - cy, x - cx)
        mask = np.where(distance < radius, 1, 0).astype(np.uint8)
        if classes > 2:
            mask[(distance >= radius) & (distance < 1.4 * radius)] = 2
        return mask

    for site in SITES:
        for number in range(per_site):
            cy, cx, radius = (
                rng.uniform(0.35, 0.65) * size,
                rng.uniform(0.35, 0.65) * size,
                rng.uniform(0.1, 0.18) * size,
            )
            truth = draw(cy, cx, radius)
            grey = (
                0.25 + 0.35 * (truth == 1) - 0.1 * (truth == 2) + 0.15 * np.sin(x / 9 + cy) * np.cos(y / 11)
            )
            images.append((grey + 0.08 * rng.standard_normal(grey.shape)).clip(0, 1).astype(np.float32))
            truths.append(truth)
            sites.append(site)
            for name, miss in zip(answers, (2.5, 2.2, 1.5), strict=True):
                lost = number == 0 and name == "ppcmi"
                shift = rng.normal(0, miss, 2)
                answer = draw(cy + shift[0], cx + shift[1], radius * rng.uniform(0.85, 1.15))
                answers[name].append(np.zeros_like(truth) if lost else answer)
    arrays: dict[str, npt.NDArray[Any]] = {name: np.stack(masks) for name, masks in answers.items()}
    return {"images": np.stack(images), "truth": np.stack(truths), "site": np.array(sites), **arrays}


def make_run(path: Path, *, classes: int = 3, examples: bool = True, **changes: Any) -> Path:
    """Write a run folder and return it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.json").write_text(json.dumps(make_metrics(classes=classes, **changes)), encoding="utf-8")
    (path / "history.json").write_text(json.dumps(make_history()), encoding="utf-8")
    (path / "config.toml").write_text('trust = "federation"\nbits_up = 4\n', encoding="utf-8")
    if examples:
        np.savez_compressed(path / "examples.npz", **make_examples(classes))  # type: ignore[arg-type]
    return path
