"""Pictures of experiments: Dice over a setting, and held-out images with every method's contours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcmi_fast.errors import ConfigError
from ppcmi_fast.experiments.plan import PAYLOAD
from ppcmi_fast.experiments.records import settings_of
from ppcmi_fast.experiments.variants import DICE, Variant, variants_of
from ppcmi_fast.federation.config import setting_of
from ppcmi_fast.report.figures import class_colour, image_dice
from ppcmi_fast.report.runfolder import Examples, load_examples, method_order, method_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 8
# Of each site's examples, which go from the worst to the best: the worst and one in the middle.
SHOWN = (0, 2)
TRUTH = "#ffffff"


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            'experiments: matplotlib is missing; cure: pip install "ppcmi-fast[train]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path, dpi: int = 110) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})


def _setting(variant: Variant, name: str) -> Any:
    """Of the variant's records, as it was done then where they are of before there was such a setting."""
    config = settings_of(variant.records[0])
    if config is None:
        raise ConfigError(
            f"{variant.name}: expected a record of settings that this version takes; run it again"
        )
    return setting_of(config, name)


def _x(variant: Variant, name: str) -> float:
    return float(variant.payload if name == PAYLOAD else _setting(variant, name))


def _curve(variant: Variant, method: str, split: str) -> str:
    """What the curve is called that a variant is on."""
    if not split:
        return variant.title(method)
    value = _setting(variant, split)
    listed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{variant.title(method)}, {split} {listed}"


def curves_of(variants: list[Variant], method: str, split: str) -> dict[str, list[Variant]]:
    """Those that answer by a method, by what their curve is called."""
    curves: dict[str, list[Variant]] = {}
    for variant in variants:
        if method in variant.methods:
            curves.setdefault(_curve(variant, method, split), []).append(variant)
    return curves


def draw(result: dict[str, Any], path: Path) -> None:
    """Dice with its interval over the figure's x, a line a method and value of what the figure is split by.

    Raises:
        ConfigError: matplotlib is not installed, or a record is of settings that this version does not take.
    """
    plan = result["figure"]
    figure = _new_figure(6.4, 4.2)
    axes = figure.subplots()
    everything, split = variants_of(result), plan.get("split", "")
    for method in plan["methods"]:
        for title, variants in curves_of(everything, method, split).items():
            variants.sort(key=lambda variant: _x(variant, plan["x"]))
            x = [_x(variant, plan["x"]) for variant in variants]
            axes.plot(x, [v.mean(method)[DICE] for v in variants], marker="o", label=title)
            intervals = [v.held.interval(v.dice(method)) for v in variants]
            known = [pair for pair in intervals if pair is not None]
            if known and len(known) == len(intervals):
                axes.fill_between(x, [low for low, _ in known], [high for _, high in known], alpha=0.15)
    if plan["x"] == PAYLOAD:
        axes.set_xscale("log")
    axes.set(xlabel=plan["label"], ylabel="Dice, held-out subjects", title=result["title"])
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize=8)
    _save(figure, path)


def draw_rows(run: Path, record: dict[str, Any], path: Path) -> None:
    """Examples of a run, a row an image: the truth, and every method's contours with their Dice.

    Args:
        run: its folder, with examples.npz.
        record: of it.
        path: PNG to write.

    Raises:
        ConfigError: matplotlib is not installed, or the run kept no examples.
    """
    examples = load_examples(run / "examples.npz")
    if examples is None:
        raise ConfigError(f"{run}: expected examples.npz to draw rows from, found none; run it again")
    classes = record["dataset"]["classes"]
    methods = [name for name in method_order(list(examples.methods)) if name != "ppcmi_float32"]
    numbers = _chosen(examples)
    figure = _new_figure(1.5 * (1 + len(methods)), 1.62 * len(numbers))
    grid = figure.subplots(len(numbers), 1 + len(methods), squeeze=False)
    for row, number in zip(grid, numbers, strict=True):
        truth = examples.truth[number]
        _panel(row[0], examples.images[number], truth, truth, classes)
        row[0].set_ylabel(examples.sites[number], fontsize=8)
        for axes, name in zip(row[1:], methods, strict=True):
            answer = examples.methods[name][number]
            _panel(axes, examples.images[number], answer, truth, classes)
            axes.set_xlabel(f"{image_dice(answer, truth, classes):.2f}", fontsize=8, labelpad=1)
    titles = ["truth", *(method_title(name, record["settings"]) for name in methods)]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(_wrapped(title), fontsize=8)
    _save(figure, path, dpi=80)


def _chosen(examples: Examples) -> list[int]:
    """Some of each site's examples, which a run keeps from the worst to the best."""
    numbers = []
    for site in dict.fromkeys(examples.sites):
        own = [number for number, name in enumerate(examples.sites) if name == site]
        numbers += [own[place] for place in SHOWN if place < len(own)]
    return numbers[:MOST_ROWS]


def _panel(axes: Any, image: Any, answer: Any, truth: Any, classes: int) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for label in range(1, classes):
        for mask, colour, style in (
            (truth == label, TRUTH, "dotted"),
            (answer == label, class_colour(label), "solid"),
        ):
            # A class that is all or nothing has no contour.
            if mask.any() and not mask.all():
                axes.contour(
                    mask.astype(np.float32), levels=[0.5], colors=[colour], linewidths=1.0, linestyles=style
                )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _wrapped(title: str) -> str:
    """On two lines where it is long."""
    words = title.split()
    middle = (len(words) + 1) // 2
    return title if len(title) <= 14 else f"{' '.join(words[:middle])}\n{' '.join(words[middle:])}"
