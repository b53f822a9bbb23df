"""Numbers and sentences that the report, the terminal table and docs/results.md share."""

from __future__ import annotations

import math
from typing import Any

# One image of the published system at 256 x 256: 114,688 float32 values each way (paper, section on payload).
PUBLISHED_VALUES_EACH_WAY = 114_688
PUBLISHED_SIZE = 256

LIMITS = (
    "It is a secret rotation of the latents. It keeps sites apart and hides the coordinates; it is not "
    "encryption, and it proves nothing about privacy.",
    "Whoever knows the codec and holds one image of a site together with its protected latents, or only "
    "enough public images of the same kind, recovers the site's latents almost as well as the key holder.",
    "A learned inverter needs about five known pairs of image and protected latents, neither key nor codec.",
    "Inner products between positions survive every rotation. Unless positions are folded into channels, the "
    "main components of the protected latents show the anatomy as a picture.",
    "Quantization and a channel permutation add nothing against these attacks.",
    "The trained mapper, and what it answers, still depend on the training images: membership can leak "
    "through them.",
)
RESISTS = (
    "keeping the codec among the sites, folding, a lossy bottleneck, noise with accounting, few scales, "
    "TLS on the wire and encryption at rest."
)
_TRUST = {
    "server": "Trust mode server: the server holds every site's inverse key, as in the paper. It can turn "
    "protected latents back into plain latents, and with the codec into images.",
    "federation": "Trust mode federation: the server holds one switch matrix per site, role and scale, and "
    "learns neither a site's key nor the common frame. A site that colludes with the server undoes this for "
    "every site.",
    "sites": "Trust mode sites: the server holds no key material and learns one adapter per site.",
}


def keyed_transform(trust: str) -> str:
    """What the server of this trust mode holds, and what follows."""
    return _TRUST.get(trust, f"Trust mode {trust}.")


def number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def decimal(value: Any, digits: int) -> str:
    """A number with `digits` decimals, a dash when there is none."""
    found = number(value)
    return "–" if found is None else f"{found:.{digits}f}"


def interval(scores: dict[str, Any], digits: int) -> str:
    """The 95 % interval of a measure, as "0.831 to 0.884"; "" when the run has none."""
    ends = scores.get("ci95")
    if not isinstance(ends, list) or len(ends) != 2 or None in [number(end) for end in ends]:
        return ""
    return f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}".replace("-", "−")


def with_interval(scores: dict[str, Any], digits: int) -> str:
    """The mean of a measure with its interval in brackets, where it has one."""
    span, mean = interval(scores, digits), decimal(scores.get("mean"), digits)
    return f"{mean} ({span})" if span else mean


def signed(value: float) -> str:
    """One decimal with its sign (a true minus)."""
    return f"{value:+.1f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """Three decimals or that it is less, a dash when there is none."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def processor(threads: int, cpu: str) -> str:
    """What work was done on, as "2 threads of AMD EPYC"."""
    return f"{threads} thread{'s' if threads > 1 else ''} of {cpu}"


def integer(value: Any) -> str:
    """Thousands separated, a dash when there is none."""
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def size(count: Any) -> str:
    """Bytes in the unit that reads best (1 KB = 1000 bytes)."""
    found = number(count)
    if found is None:
        return "–"
    if found < 1000:
        return f"{found:.0f} B"
    for unit_name, scale in (("KB", 1e3), ("MB", 1e6)):
        if found < 1000 * scale:
            return f"{found / scale:.1f} {unit_name}"
    return f"{found / 1e9:.2f} GB"


def duration(seconds: Any) -> str:
    """Seconds as a reader says them."""
    found = number(seconds)
    if found is None:
        return "–"
    if found < 1:
        return f"{1000 * found:.0f} ms"
    if found < 60:
        return f"{found:.1f} s"
    minutes, rest = divmod(round(found), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def unit(metrics: dict[str, Any]) -> str:
    """Unit of the surface distances: mm where the spacing is known, else px of the resized image."""
    return str(metrics["dataset"].get("spacing_unit") or "px")


def mean_dice(metrics: dict[str, Any], name: str) -> float | None:
    """Mean over sites of a method's Dice; None when the run lacks it."""
    return number(metrics["methods"].get(name, {}).get("dice", {}).get("mean"))


def total_seconds(metrics: dict[str, Any]) -> float | None:
    """Time of the whole command, report included; None for a resumed run, which nobody timed as one."""
    return number(metrics.get("seconds", {}).get("total"))


def stage_seconds(metrics: dict[str, Any]) -> float | None:
    """Sum of the timed stages, None when there are none."""
    seconds = metrics.get("seconds", {})
    stages = [
        value for name, raw in seconds.items() if name != "total" and (value := number(raw)) is not None
    ]
    return sum(stages) if stages else None


def payload_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what travels, bytes in a readable unit, exact bytes), measured on the wire."""
    payload = metrics.get("payload_bytes", {})
    labels = {
        "up": "one image, up (site to server)",
        "down": "one image, down (server to site)",
        "train_upload_total": "training: all protected latents and masks",
        "codec_rounds_total": "training: sealed codec weights",
        "registration_total": "registration: switch matrices",
    }
    known = {name: label for name, label in labels.items() if number(payload.get(name)) is not None}
    return [(label, size(payload[name]), integer(payload[name])) for name, label in known.items()]


def payload_note(metrics: dict[str, Any]) -> str:
    """Our payload beside the published system's at the same picture size; "" when either is unknown."""
    payload, side = metrics.get("payload_bytes", {}), number(metrics["dataset"].get("size"))
    up, down = number(payload.get("up")), number(payload.get("down"))
    if up is None or down is None or not side or up + down <= 0:
        return ""
    published = 2 * 4 * PUBLISHED_VALUES_EACH_WAY * (side / PUBLISHED_SIZE) ** 2
    return (
        f"The published system sends 0.92 MB (114,688 float32 values each way) for 256 × 256; scaled by area "
        f"to {side:.0f} × {side:.0f} that is {size(published)}, {published / (up + down):.0f} times what was "
        "sent here."
    )
