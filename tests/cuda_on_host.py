"""Builds the CUDA kernels for the CPU, by the host shim, once for each state of the sources."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pybind11

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
BUILT = ROOT / "build" / "cuda_on_host"
FLAGS = ["-std=c++17", "-DPPCMI_HOST_SHIM", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def compiler() -> str:
    """The C++ compiler that the package itself was built with, or the machine's usual one."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    assert found, "expected a C++ compiler: set CXX or install g++"
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def build(
    name: str, sources: list[Path], flags: list[str], link: list[str], csrc: Path = CSRC, built: Path = BUILT
) -> Path:
    """Compile and link `sources` to <built>/<hash>/<name>; nothing is done twice."""
    digest = hashlib.sha256(" ".join([compiler(), name, *flags, *link]).encode())
    for path in sorted([*csrc.rglob("*.*"), *sources]):
        digest.update(path.read_bytes())
    out = built / digest.hexdigest()[:16] / name
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    objects = []
    for path in sources:
        objects.append(out.parent / f"{path.stem}-{os.getpid()}.o")
        _run([compiler(), *FLAGS, *flags, "-x", "c++", "-c", str(path), "-o", str(objects[-1])])
    linked = out.with_name(f"{name}-{os.getpid()}")
    _run([compiler(), *flags, *link, *map(str, objects), "-o", str(linked)])
    linked.replace(out)
    for path in objects:
        path.unlink()
    return out


def load(csrc: Path, built: Path) -> Any:
    """The module `_cuda_on_host` of these sources: as `ppcmi_fast._cuda`, for tensors on the CPU."""
    kernels = csrc / "kernels"
    sources = [
        csrc / "bindings" / "cuda.cpp",
        kernels / "host_shim" / "shim.cpp",
        kernels / "steps.cpp",
        kernels / "codebooks.cpp",
        *sorted((kernels / "cuda").glob("*.cu")),
    ]
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    name = f"_cuda_on_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = build(name, sources, ["-O1", "-fvisibility=hidden", *includes], ["-shared"], csrc, built)
    spec = importlib.util.spec_from_file_location("_cuda_on_host", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def extension() -> Any:
    """The module of the project's own sources."""
    return load(CSRC, BUILT)
