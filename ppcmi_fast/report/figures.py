"""The figures of a report as inline SVG and base64 PNG: overlays, learning curves, Dice per site.

Every figure is a string that goes into the page as it is, so the page asks nobody for anything. Lines and
text of the charts use `currentColor`, so that they follow the reader's light or dark theme.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ppcmi_fast.errors import RunError
from ppcmi_fast.report.runfolder import Examples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURE = 'pip install "ppcmi-fast[train]"'

# Told apart by readers with any colour vision, and readable on grey images.
CLASS_COLOURS = ("#ffb000", "#38bdf8", "#f472b6", "#a3e635", "#fb7185", "#c4b5fd")
METHOD_COLOURS = {
    "ppcmi": "#0d9488",
    "ppcmi_float32": "#5eead4",
    "unet_centralised": "#8b5cf6",
    "unet_local": "#ea580c",
}
_OTHER_COLOURS = ("#3b82f6", "#be185d", "#65a30d", "#78716c")
# A colour that no figure uses; replaced by currentColor after drawing.
_INK = "#123456"
# Curves longer than this are thinned: nobody sees more points in 300 pixels and the page stays small.
_MAX_POINTS = 300
# A structure is shown with this much around it, in a window of at least and at most these shares of the edge.
_ZOOM_MARGIN, _ZOOM_LEAST, _ZOOM_MOST = 2.0, 0.3, 0.75


def require() -> None:
    """Raise RunError with its cure when a library that the report needs is missing."""
    missing = [name for name in ("matplotlib", "jinja2", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"the report needs {', '.join(missing)}: {CURE}")


def class_colour(index: int) -> str:
    """Colour of foreground class `index` (1 is the first)."""
    return CLASS_COLOURS[(index - 1) % len(CLASS_COLOURS)]


def method_colour(name: str, position: int = 0) -> str:
    """Colour of a method, the same in every figure."""
    return METHOD_COLOURS.get(name, _OTHER_COLOURS[position % len(_OTHER_COLOURS)])


def png_data_url(image: npt.NDArray[np.float32]) -> str:
    """A grey image [H, W], 0..1, as a data: URL holding a PNG."""
    from PIL import Image

    grey = np.round(np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def contour_path(mask: npt.NDArray[np.bool_]) -> str:
    """Outline of a mask [H, W] as the `d` of an SVG path in pixel coordinates (pixel centres at +0.5)."""
    try:
        from contourpy import contour_generator
    except ImportError as error:
        raise RunError(f"the report needs matplotlib: {CURE}") from error
    if not mask.any():
        return ""
    # One row of background around it closes outlines at the border of the picture.
    padded = np.pad(mask.astype(np.float64), 1)
    lines = contour_generator(z=padded).lines(0.5)
    parts = []
    for line in lines:
        points = np.asarray(line, dtype=np.float64) - 0.5
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points[:-1]) + "Z")
    return "".join(parts)


def image_dice(answer: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], classes: int) -> float:
    """Mean Dice of one image [H, W] over the foreground classes; a class that both lack counts 1."""
    scores = []
    for index in range(1, classes):
        a, t = answer == index, truth == index
        size = int(a.sum()) + int(t.sum())
        scores.append(1.0 if size == 0 else 2.0 * int((a & t).sum()) / size)
    return float(np.mean(scores)) if scores else 1.0


@dataclass(frozen=True)
class Panel:
    """One picture of an example row: outlines of the answer, the truth's dashed beneath, and its Dice."""

    title: str
    paths: list[tuple[str, str]]
    truth: list[str]
    dice: float | None


@dataclass(frozen=True)
class ExampleRow:
    """One held-out image with its panels; `zoom` is the x, y, width, height that all but the first show."""

    site: str
    rank: str
    number: int
    image: str
    width: int
    height: int
    zoom: tuple[int, int, int, int]
    panels: list[Panel]

    @property
    def zoomed(self) -> bool:
        """Whether the panels show less than the whole image."""
        return self.zoom != (0, 0, self.width, self.height)


def _outlines(mask: npt.NDArray[np.uint8], classes: int) -> list[tuple[str, str]]:
    present = [index for index in range(1, classes) if (mask == index).any()]
    # The outline of an enclosed structure comes last, or the hole of the one around it would cover it.
    present.sort(key=lambda index: -_extent(mask == index))
    return [(class_colour(index), contour_path(mask == index)) for index in present]


def _extent(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.ptp(np.flatnonzero(mask.any(axis=0))) + 1) * int(
        np.ptp(np.flatnonzero(mask.any(axis=1))) + 1
    )


def example_rows(
    examples: Examples, classes: int, shown: list[tuple[str, str]], per_site: int = 4
) -> dict[str, list[ExampleRow]]:
    """Choose and draw examples: of each site the worst, the best and some between, by Dice of `shown[0]`.

    shown: (method name, title) of the answers to draw; methods that the run lacks are left out.
    """
    shown = [(name, title) for name, title in shown if name in examples.methods]
    rows: dict[str, list[ExampleRow]] = {}
    for site in sorted(set(examples.sites)):
        numbers = [i for i, name in enumerate(examples.sites) if name == site]
        if shown:
            lead = examples.methods[shown[0][0]]
            numbers.sort(key=lambda i: image_dice(lead[i], examples.truth[i], classes))
        steps = np.linspace(0, len(numbers) - 1, min(per_site, len(numbers))).round().astype(int)
        for order, step in enumerate(steps):
            number = numbers[int(step)]
            rank = (
                "worst"
                if order == 0 and len(steps) > 1
                else "best"
                if step == len(numbers) - 1
                else "between"
            )
            rows.setdefault(site, []).append(_example_row(examples, number, rank, classes, shown))
    return rows


def zoom_box(marked: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Part of a picture [H, W] that holds everything marked with a margin: x, y, width, height.

    The whole picture when nothing is marked or when zooming would gain little.
    """
    height, width = marked.shape
    whole = (0, 0, int(width), int(height))
    if not marked.any():
        return whole
    edges = []
    for axis in (0, 1):
        found = np.flatnonzero(marked.any(axis=axis))
        edges.append((int(found[0]), int(found[-1]) + 1))
    (left, right), (top, bottom) = edges
    # The same share of both edges keeps the picture's shape.
    share = max(_ZOOM_MARGIN * (right - left) / width, _ZOOM_MARGIN * (bottom - top) / height, _ZOOM_LEAST)
    if share > _ZOOM_MOST:
        return whole
    wide, high = round(share * width), round(share * height)
    x = min(max(0, (left + right - wide) // 2), width - wide)
    y = min(max(0, (top + bottom - high) // 2), height - high)
    return int(x), int(y), int(wide), int(high)


def _example_row(
    examples: Examples, number: int, rank: str, classes: int, shown: list[tuple[str, str]]
) -> ExampleRow:
    truth = examples.truth[number]
    true_outlines = _outlines(truth, classes)
    dashed = [path for _, path in true_outlines]
    panels = [Panel("image", [], [], None), Panel("truth", true_outlines, [], None)]
    for name, title in shown:
        answer = examples.methods[name][number]
        panels.append(Panel(title, _outlines(answer, classes), dashed, image_dice(answer, truth, classes)))
    height, width = truth.shape
    marked = truth > 0
    for name, _ in shown:
        marked = marked | (examples.methods[name][number] > 0)
    image = png_data_url(examples.images[number])
    return ExampleRow(
        examples.sites[number], rank, number, image, int(width), int(height), zoom_box(marked), panels
    )


def _figure(width: float, height: float) -> Figure:
    try:
        import matplotlib
    except ImportError as error:
        raise RunError(f"the report needs matplotlib: {CURE}") from error
    from matplotlib.figure import Figure

    # Text stays text (the page's own font), and ids depend on nothing but the figure.
    matplotlib.rcParams["svg.fonttype"] = "none"
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, label: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Two figures on one page must not share ids, two drawings of one figure must be the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].replace(_INK, "currentColor")
    # matplotlib numbers its groups from 1 in every figure; ids without a reference would clash on the page.
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found.group() if found.group(1) in used else "", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _plain_axes(axes: Any) -> None:
    axes.tick_params(colors=_INK, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_alpha(0.35)
        spine.set_visible(name in ("left", "bottom"))
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)


def _points(entries: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [
        (float(entry["step"]), float(entry[key]))
        for entry in entries
        if isinstance(entry.get(key), (int, float)) and math.isfinite(entry[key]) and "step" in entry
    ]
    stride = max(1, math.ceil(len(pairs) / _MAX_POINTS))
    # The last point is where training ended: it stays.
    kept = pairs[::stride] + ([pairs[-1]] if pairs and (len(pairs) - 1) % stride else [])
    return [x for x, _ in kept], [y for _, y in kept]


def group_stages(history: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Stages named `what.site` share one chart `what`; the others have their own."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for stage, entries in history.items():
        if isinstance(entries, list) and entries:
            chart, _, line = stage.partition(".")
            groups.setdefault(chart, {})[line or stage] = [
                entry for entry in entries if isinstance(entry, dict)
            ]
    return groups


def learning_curve(title: str, stages: dict[str, list[dict[str, Any]]]) -> str:
    """Loss (left axis) and validation score (right, dashed) over the steps of one kind of stage, as SVG."""
    figure = _figure(4.3, 2.7)
    axes = figure.subplots()
    right: Any = None
    many = len(stages) > 1
    positive = True
    for position, (line, entries) in enumerate(stages.items()):
        colour = _OTHER_COLOURS[position % len(_OTHER_COLOURS)] if many else "#3b82f6"
        steps, losses = _points(entries, "loss")
        positive = positive and all(loss > 0 for loss in losses)
        axes.plot(steps, losses, color=colour, linewidth=1.4, label=line if many else "training loss (left)")
        steps, values = _points(entries, "val")
        if values:
            if right is None:
                right = axes.twinx()
            label = None if many else "validation (right)"
            right.plot(steps, values, "--", color=colour if many else "#ea580c", linewidth=1.4, label=label)
    _plain_axes(axes)
    if positive:
        axes.set_yscale("log")
        _few_log_ticks(axes)
    axes.set_xlabel("step", color=_INK, fontsize=9)
    axes.set_ylabel("training loss", color=_INK, fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    if right is not None:
        right.tick_params(colors=_INK, labelsize=9)
        for spine in right.spines.values():
            spine.set_visible(False)
        right.set_ylabel("validation score" + (" (dashed)" if many else ""), color=_INK, fontsize=9)
        more, names = right.get_legend_handles_labels()
        handles, labels = [*handles, *more], [*labels, *names]
    legend = figure.legend(
        handles, labels, loc="outside upper left", ncols=2, fontsize=9, frameon=False, labelcolor=_INK
    )
    legend.set_in_layout(True)
    return _svg(figure, f"learning curves: {title}")


def _few_log_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    # Within two decades the powers of ten alone would leave an axis with one label or none.
    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def dice_by_site(methods: dict[str, dict[str, Any]], titles: dict[str, str]) -> str:
    """Dice of every method at every site as a dot chart, as SVG; "" when no method has sites."""
    sites = sorted({site for scores in methods.values() for site in scores.get("dice", {}).get("site", {})})
    if not sites:
        return ""
    figure = _figure(8.2, 0.8 + 0.5 * (len(sites) + 1))
    axes = figure.subplots()
    rows = [*sites, "mean"]
    spread = np.linspace(-0.2, 0.2, max(2, len(methods)))
    for position, (name, scores) in enumerate(methods.items()):
        dice = scores["dice"]
        values = [dice.get("site", {}).get(site, math.nan) for site in sites] + [dice.get("mean", math.nan)]
        y = [len(rows) - 1 - row + float(-spread[position]) for row in range(len(rows))]
        axes.scatter(
            [math.nan if value is None else value for value in values],
            y, s=52, color=method_colour(name, position), label=titles.get(name, name), zorder=3,
        )  # fmt: skip
    _plain_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=_INK, alpha=0.12, linewidth=0.7)
    for row in range(len(rows) - 1):
        axes.axhline(row + 0.5, color=_INK, alpha=0.12, linewidth=0.7)
    axes.set_yticks(range(len(rows)), rows[::-1])
    axes.tick_params(labelsize=9)
    axes.set_ylim(-0.55, len(rows) - 0.45)
    axes.set_xlabel("Dice (higher is better)", color=_INK, fontsize=9)
    figure.legend(
        loc="outside upper left", ncols=4, fontsize=9, frameon=False, labelcolor=_INK, handletextpad=0.2
    )
    return _svg(figure, "Dice per site and method")
