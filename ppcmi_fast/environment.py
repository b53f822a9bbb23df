"""What this machine and installation are: versions, instruction sets, threads, CUDA, extras.

`describe_environment()` goes into every `metrics.json`, so it holds only what explains a number (no path, no
host, no user name). `ppcmi doctor` adds which extras are there and the command that cures what is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppcmi_fast import __version__

DISTRIBUTION = "ppcmi-fast"

# The instruction sets that a CPU kernel could dispatch on; /proc/cpuinfo lists about a hundred others.
_ISA_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "fphp", "sve", "sve2", "i8mm", "bf16",
)  # fmt: skip

_LIBRARIES = ("torch", "numpy", "scipy", "monai", "cryptography", "safetensors", "pillow")

# Used when the package runs from a source tree that was never installed; otherwise the metadata is asked.
_KNOWN_EXTRAS: dict[str, tuple[str, ...]] = {"train": ("monai", "matplotlib", "jinja2", "scipy")}


@dataclass(frozen=True)
class Extra:
    """One optional group of dependencies: its name, what it needs and what of that is missing."""

    name: str
    needs: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def cure(self) -> str:
        """The command that installs the group."""
        return f'pip install "{DISTRIBUTION}[{self.name}]"'


def version(distribution: str) -> str | None:
    """Installed version of a distribution, None when it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_info(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Model name and known instruction-set flags of the first CPU; no flags where the file is absent."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine() or "unknown", []
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    # x86 calls the line "flags", ARM "Features".
    present = set((fields.get("flags") or fields.get("features") or "").split())
    model = fields.get("model name") or platform.machine() or "unknown"
    return model, [flag for flag in _ISA_FLAGS if flag in present]


def usable_cores() -> int:
    """Cores this process may run on (a container often allows fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """Physical memory in GiB, None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def cuda_info() -> dict[str, Any]:
    """Whether torch was built for CUDA, whether a device answers, and which ones."""
    import torch

    available = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if available else []
    return {"built_for": torch.version.cuda, "available": available, "devices": devices}


def kernels() -> dict[str, bool]:
    """Which compiled kernel modules are installed (found, not loaded)."""
    return {name: importlib.util.find_spec(f"ppcmi_fast.{name}") is not None for name in ("_cpu", "_cuda")}


def describe_environment(threads: int | None = None) -> dict[str, Any]:
    """The facts that explain a measured number, ready for JSON.

    threads: what the run used; None asks torch. Loads torch.
    """
    import torch

    model, isa = cpu_info()
    libraries = {name: found for name in _LIBRARIES if (found := version(name)) is not None}
    return {
        "ppcmi_fast": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": libraries,
        "cpu": model,
        "isa": isa,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "memory_gib": memory_gib(),
        "cuda": cuda_info(),
        "kernels": kernels(),
    }


def parse_extras(requirements: list[str]) -> dict[str, tuple[str, ...]]:
    """Group `Requires-Dist` lines such as `monai>=1.5; extra == "train"` by their extra."""
    groups: dict[str, list[str]] = {}
    for line in requirements:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        name = re.match(r"[\w.-]+", requirement.strip())
        # A group may name the package itself ("ppcmi-fast[train,dev]"); that is no library to look for.
        if extra and name and name.group() != DISTRIBUTION:
            groups.setdefault(extra.group(1), []).append(name.group())
    return {extra: tuple(names) for extra, names in groups.items()}


def extras() -> list[Extra]:
    """Every optional group with what of it is missing here."""
    try:
        declared = parse_extras(importlib.metadata.requires(DISTRIBUTION) or [])
    except importlib.metadata.PackageNotFoundError:
        declared = {}
    return [
        Extra(name, needs, tuple(need for need in needs if version(need) is None))
        for name, needs in (declared or _KNOWN_EXTRAS).items()
    ]
