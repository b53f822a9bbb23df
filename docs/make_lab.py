"""Make docs/lab.md from docs/results/lab/, which the scripts in experiments/lab/ write.

python docs/make_lab.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ppcmi_fast.report import words

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "lab"
PAGE = DOCS / "lab.md"
QUESTIONS = {
    "mask_weights": (
        "Weights of mask codes",
        "The answers of a trained mapper, in float32, are rounded again, with blocks' means and all other frequencies"
        " weighted differently before (the two numbers); each site mixes by a Haar matrix of its own. The pair of 0.7"
        " and 1.75 is the default of `mask_weights`: a pair that suits every run, of several that do.",
    ),
    "thresholds": (
        "Thresholds, also for the U-Nets",
        "In the comparisons ours answers at thresholds that sites choose on their validation images, the U-Nets by"
        " their likeliest class. Here sites choose thresholds for these as well, by the same rule: over subjects, or,"
        " in older entries, over images as if each were a subject's only one. Points are the difference from the line"
        " above.",
    ),
    "views": (
        "Views of an image, also for the U-Nets",
        "Every method answers each image as it is, and the mean of its answers to several views of it is taken: larger"
        " and turned besides (`query_views`), also by the U-Nets. Points are the difference from the same method's one"
        " view.",
    ),
    "sizes": (
        "Size of what is to be found",
        "Images in which something is to be found, in order of its area, all sites' together, in thirds; means are over"
        " the sites that have images in a third. Numbers and areas are of the held-out images; validation images have"
        " thirds of their own. All answer by the likeliest class, ours in newer entries in four views as well; points"
        " are the difference from ours on the same images.",
    ),
    "refinement": (
        "Refinement at the site",
        "A small convolutional network at the site sees the image and the server's answer and changes the answer. It is"
        " trained on the answers to the site's training images in several augmented copies, by each site alone or"
        " averaged among the sites, and begins as the identity. It would need a query for each of these copies.",
    ),
    "coarse_supervision": (
        "Supervision at every scale",
        "The mapper, trained from nothing on the latents of a trained codec, has to answer on the coarser grids, too,"
        " as the paper's mappings do; measured is what the finest grid's answer is worth.",
    ),
}


def signed(value: float) -> str:
    """Points with their sign; what rounds to nothing is +0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"


def row(run: str, method: str, entry: dict[str, Any]) -> str:
    """One line of a question's table."""
    if "points" in entry:
        interval = entry["ci95"]
        difference = [
            signed(entry["points"]),
            "–" if interval is None else f"{interval[0]:.1f} .. {interval[1]:.1f}",
            words.p_value(entry["p"]),
        ]
    else:
        difference = ["–"] * 3
    seconds = f"{entry['seconds'] / 60:.1f}" if entry["seconds"] else "–"
    cells = [run, method, f"{entry['validation']:.3f}", f"{entry['dice']:.3f}", *difference, seconds]
    return f"| {' | '.join(cells)} |"


def section(question: str, found: dict[str, Any]) -> list[str]:
    """What is known of one question."""
    title, text = QUESTIONS[question]
    machines = {words.processor(run["threads"], run["cpu"]) for run in found.values()}
    lines = [
        f"## {title}",
        "",
        f"{text} `python experiments/lab/{question}.py RUN`; {', or '.join(sorted(machines))}.",
        "",
        "| run | method | Dice, validation | Dice, held out | points | 95 % | p | minutes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, run in found.items():
        steps = f", {run['steps']} steps" if "steps" in run else ""
        about = f"{name}, {run['size']} x {run['size']}{steps}"
        lines += [row(about, method, entry) for method, entry in run["methods"].items()]
    return [*lines, ""]


def page(results: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    lines = [
        "# Tried on finished runs",
        "",
        "Made by `python docs/make_lab.py` from `docs/results/lab/`; do not edit by hand. Ideas and questions that are"
        " measured on finished runs. Weights of mask codes, thresholds and views are settings of the package;"
        " refinement and supervision at every scale are no part of it, and sizes of structures are only measured."
        " Dice is the mean over sites of the likeliest classes' on their images; points are the difference from the"
        " first line of a run, unless its section says another, with its 95 % bootstrap interval and the p of a"
        " signed-rank test over subjects."
        " Runs have the names that the experiments' files gave them when they were measured.",
        "",
    ]
    for question, found in results.items():
        lines += section(question, found)
    return "\n".join(lines)


def kept() -> dict[str, dict[str, Any]]:
    """What there is of each question."""
    paths = {question: RESULTS / f"{question}.json" for question in QUESTIONS}
    return {q: json.loads(path.read_text(encoding="utf-8")) for q, path in paths.items() if path.is_file()}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(kept()), encoding="utf-8")


if __name__ == "__main__":
    main()
