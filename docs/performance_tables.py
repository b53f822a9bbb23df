"""What the parts of docs/performance.md share: cases of a results file, their rates, and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Case = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A line of what the kernels must show."""

    text: str
    wanted: str
    measured: str
    met: bool


def cases(results: dict[str, Any], group: str, **settings: Any) -> list[Case]:
    """Those of a group with these settings."""
    return [
        case
        for case in results["cases"]
        if case["group"] == group and all(case["case"][name] == value for name, value in settings.items())
    ]


def only(results: dict[str, Any], group: str, **settings: Any) -> Case:
    """The one case of a group with these settings."""
    (found,) = cases(results, group, **settings)
    return found


def over_ours(case: Case, call: str) -> float:
    """How many times our time the call takes."""
    return float(case["calls"][call]["over_ours"])


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown; all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def target_table(targets: list[Target]) -> list[str]:
    """Each with whether it was met."""
    rows = [[t.text, t.wanted, t.measured, "met" if t.met else "**not met**"] for t in targets]
    return table(["what", "wanted", "measured", ""], rows)


def rate(case: Case) -> float:
    """Bytes that the operator must move, per second, in GB/s."""
    return float(case["bytes_moved"] / case["calls"]["ours"]["median_us"] * 1e-3)


def elements(case: Case) -> int:
    """Values of the latents."""
    settings = case["case"]
    return int(settings["batch"] * settings["channels"] * settings["size"] ** 2)
