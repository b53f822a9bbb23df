"""Curves of Dice over the variants of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppcmi_fast.errors import ConfigError
from ppcmi_fast.report.runfolder import method_title


def _x(found: dict[str, Any], name: str) -> float:
    if name == "payload":
        return float(found["payload_bytes"]["up"] + found["payload_bytes"]["down"])
    value: Any = found["settings"]
    for part in name.split("."):
        value = value[part]
    return float(value)


def draw(result: dict[str, Any], path: Path) -> None:
    """Dice with its interval over the figure's x, a line a method.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            'experiments: matplotlib is missing; cure: pip install "ppcmi-fast[train]"'
        ) from error
    plan = result["figure"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for method in plan["methods"]:
        points = sorted(
            (_x(found, plan["x"]), found["methods"][method]["dice"])
            for found in result["variants"].values()
            if method in found["methods"]
        )
        x = [at for at, _ in points]
        y = [dice["mean"] for _, dice in points]
        axes.plot(x, y, marker="o", label=method_title(method))
        if all(dice["ci95"] for _, dice in points):
            low, high = ([dice["ci95"][side] for _, dice in points] for side in (0, 1))
            axes.fill_between(x, low, high, alpha=0.15)
    if plan["x"] == "payload":
        axes.set_xscale("log")
    axes.set(xlabel=plan["label"], ylabel="Dice, held-out subjects", title=result["title"])
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
