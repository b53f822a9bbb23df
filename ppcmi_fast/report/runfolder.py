"""Reading what a run left on disk: metrics, history and example images, checked before anything is drawn."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppcmi_fast.errors import RunError

METRICS_SCHEMA = 1

METHOD_TITLES = {
    "ppcmi": "PPCMI (ours)",
    "ppcmi_one_shot": "PPCMI, before fine-tuning",
    "ppcmi_float32": "PPCMI, not quantized",
    "unet_centralised": "U-Net, all data pooled",
    "unet_local": "U-Net, each site alone",
    "fedavg": "FedAvg of the U-Net",
    "fedprox": "FedProx of the U-Net",
    "fedbn": "FedBN of the U-Net",
    "split_learning": "Split learning of the U-Net",
    "published": "PPCMI-SF as published",
    "privacy_sf": "Privacy-SF, its predecessor",
    "published_no_klt": "PPCMI-SF without its transform",
    "published_no_pyramid": "PPCMI-SF without pyramid pooling",
    "published_no_skips": "PPCMI-SF without skips",
}
_ORDER = tuple(METHOD_TITLES)
U_NET = "U-Net"
NETWORK_TITLES = {
    "attention_unet": "Attention U-Net",
    "segresnet": "SegResNet",
    "dynunet": "DynUNet",
    "unet_batch_norm": "U-Net with batch norms",
    "dynunet_batch_norm": "DynUNet with batch norms",
}


def network_title(settings: Mapping[str, Any]) -> str:
    """The name of the network of a run's baselines, "U-Net" where its settings name no other."""
    return NETWORK_TITLES.get(settings.get("baselines", {}).get("architecture"), U_NET)


def method_title(name: str, settings: Mapping[str, Any]) -> str:
    """The name of a method of a run with these settings as readers see it; an unknown name stays as it is."""
    return METHOD_TITLES.get(name, name.replace("_", " ")).replace(U_NET, network_title(settings))


def title_in(metrics: Mapping[str, Any], name: str) -> str:
    """The same of a method of the run whose metrics.json these are."""
    return method_title(name, metrics.get("config", {}))


def method_order(names: list[str]) -> list[str]:
    """Ours first, then the baselines, then whatever else a run holds."""
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


@dataclass(frozen=True)
class Examples:
    """Held-out images with the truth and every method's answer.

    Attributes:
        images: float32 [M, H, W], 0..1.
        truth: uint8 [M, H, W], class indices.
        methods: name -> uint8 [M, H, W].
        sites: site name of each image.
    """

    images: npt.NDArray[np.float32]
    truth: npt.NDArray[np.uint8]
    methods: dict[str, npt.NDArray[np.uint8]]
    sites: list[str]


@dataclass(frozen=True)
class RunFolder:
    """What one finished run left in its folder."""

    path: Path
    metrics: dict[str, Any]
    history: dict[str, list[dict[str, Any]]]
    examples: Examples | None
    config_text: str


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path}: expected JSON, got something else ({error}); run ppcmi federate again"
        ) from error


def load_metrics(path: Path) -> dict[str, Any]:
    """Read and check one metrics.json; RunError names what is missing."""
    metrics = _read_json(path)
    if not isinstance(metrics, dict) or metrics.get("schema") != METRICS_SCHEMA:
        got = metrics.get("schema") if isinstance(metrics, dict) else type(metrics).__name__
        raise RunError(
            f"{path}: expected schema {METRICS_SCHEMA}, got {got}; read it with the version that wrote it"
        )
    missing = [key for key in ("dataset", "methods") if key not in metrics]
    if missing:
        raise RunError(f"{path}: expected the keys dataset and methods, missing {', '.join(missing)}")
    return metrics


def load_examples(path: Path) -> Examples | None:
    """Read examples.npz, None when the run kept none; RunError when its arrays do not fit together."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: expected a NumPy archive without pickled objects ({error})") from error
    missing = [name for name in ("images", "truth", "site") if name not in arrays]
    if missing:
        raise RunError(f"{path}: expected the arrays images, truth and site, missing {', '.join(missing)}")
    images, truth = arrays.pop("images").astype(np.float32), arrays.pop("truth").astype(np.uint8)
    sites = [str(site) for site in arrays.pop("site")]
    methods = {name: array.astype(np.uint8) for name, array in arrays.items() if array.shape == truth.shape}
    if images.ndim != 3 or images.shape != truth.shape or len(sites) != len(images):
        raise RunError(
            f"{path}: expected images and truth [M, H, W] and M sites,"
            f" got {list(images.shape)}, {list(truth.shape)} and {len(sites)} sites"
        )
    return Examples(images, truth, methods, sites)


def load_run(run: Path) -> RunFolder:
    """Read a run folder.

    Raises RunError when the folder is absent, holds no finished run, or a file in it is damaged.
    """
    if not run.is_dir():
        raise RunError(
            f"run: expected a run folder, {run} does not exist; ppcmi federate DATA --out {run} makes one"
        )
    if not (run / "metrics.json").is_file():
        raise RunError(
            f"run: {run} holds no metrics.json, so no run has finished there; "
            f"finish it with ppcmi federate ... --out {run} --resume"
        )
    history_path, config_path = run / "history.json", run / "config.toml"
    history = _read_json(history_path) if history_path.is_file() else {}
    return RunFolder(
        path=run,
        metrics=load_metrics(run / "metrics.json"),
        history=history if isinstance(history, dict) else {},
        examples=load_examples(run / "examples.npz"),
        config_text=config_path.read_text(encoding="utf-8") if config_path.is_file() else "",
    )
