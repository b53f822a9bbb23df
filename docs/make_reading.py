"""Make docs/reading.md from benchmarks/results/reading.json.

    python docs/make_reading.py

The file is written by `ppcmi bench reading FOLDER ... --json benchmarks/results/reading.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS.parent / "benchmarks" / "results" / "reading.json"
PAGE = DOCS / "reading.md"
COLUMNS = (
    ("decoded", "decoded"),
    ("cached", "from the cache"),
    ("augmented", "augmented"),
    ("unet_step", "through a U-Net's step"),
)


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    facts = results["environment"]
    rows = []
    for found in results["sets"]:
        rates = found["images_per_second"]
        cells = [f"{rates[key]:.0f}" for key, _ in COLUMNS]
        ratio = rates["unet_step"] / rates["decoded"]
        rows.append(
            f"| {found['dataset']} | {found['layout']} | {found['images']} | {' | '.join(cells)} | {ratio:.2f} |"
        )
    slowest = min(results["sets"], key=lambda found: found["images_per_second"]["decoded"])
    needed = max(
        f["images_per_second"]["unet_step"] / f["images_per_second"]["augmented"] for f in results["sets"]
    )
    size = results["sets"][0]["size"]
    return "\n".join(
        [
            "# Reading against training",
            "",
            f"Made by `python docs/make_reading.py` from `benchmarks/results/reading.json`, which"
            f" `{results['command']}` wrote. Images a second at {size} x {size} pixels, medians of five turns on one"
            f" thread of {facts['cpu']}; the files lie in the system's page cache. The last column is the number of"
            " times that a network must see an image until decoding it took less time than training on it.",
            "",
            f"| data set | layout | images | {' | '.join(name for _, name in COLUMNS)} | views |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "A run reads every image once, before training, and keeps it in memory; each is then seen dozens of times."
            f" So reading never slows a step: even {slowest['dataset']}, the slowest to decode, is read at"
            f" {slowest['images_per_second']['decoded']:.0f} images a second. The cache shortens the wait before the"
            " first step of every run after the first. Augmentation is done within the step and takes at most"
            f" {100 * needed:.0f} % of the time of a U-Net's step.",
            "",
        ]
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
