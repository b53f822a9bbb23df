"""All that needs a GPU, in under 8 minutes: build, tests, compute-sanitizer, training, lab, benchmark.

    make gpu-check

Writes benchmarks/results/gpu.json, also where a step failed. Exit status: 0 all passed, 1 a step failed, 2 no device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
BUDGET_SECONDS = 470
LAB_SIZES = (("64", "64", "16384"), ("256", "16", "16384"))  # 256 MiB of float32 each


class Check:
    """Runs steps one after the other, until the time is up, and keeps what each said."""

    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget
        self.steps: list[dict[str, Any]] = []
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, name: str, command: list[str], most_seconds: float) -> bool:
        """Whether the step passed; a step without time left has not."""
        seconds = min(most_seconds, self.end - time.monotonic())
        begun = time.monotonic()
        if seconds <= 1:
            return self._keep(name, None, 0.0, "no time left")
        try:
            status, said = self._finish(command, seconds)
        except subprocess.TimeoutExpired:
            return self._keep(name, None, time.monotonic() - begun, f"stopped after {seconds:.0f} s")
        except OSError as error:
            return self._keep(name, None, 0.0, str(error))
        return self._keep(name, status, time.monotonic() - begun, said.replace(str(ROOT), "."))

    def _finish(self, command: list[str], seconds: float) -> tuple[int, str]:
        """Exit status of a command and what it said; nothing that it started is left when its time is up.

        What goes on on the device would be in the figures of the steps that are timed.
        """
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Elsewhere than the source tree: python would import the package from there, without its kernels.
            cwd=tempfile.gettempdir(),
            start_new_session=True,
        ) as process:
            self._running.add(process)
            try:
                said, _ = process.communicate(timeout=seconds)
            finally:
                self._end(process)
                self._running.discard(process)
        return process.returncode, said

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        """Kill what is left of a step's session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def together(self, *parts: Callable[[], object]) -> None:
        """Parts that time nothing, beside each other."""
        with ThreadPoolExecutor(len(parts)) as pool:
            try:
                for begun in [pool.submit(part) for part in parts]:
                    error = begun.exception()
                    if error is not None:
                        self.missing("a part", f"{type(error).__name__}: {error}")
            except KeyboardInterrupt:
                # Sessions of their own do not hear Ctrl-C, and the pool waits for them and for what is to begin.
                self.end = time.monotonic()
                for process in list(self._running):
                    self._end(process)
                raise

    def missing(self, name: str, why: str) -> None:
        """A step that this machine cannot take."""
        self._keep(name, None, 0.0, why)

    def _keep(self, name: str, status: int | None, seconds: float, said: str) -> bool:
        passed = status == 0
        self.steps.append(
            {"step": name, "passed": passed, "seconds": round(seconds, 1), "said": said.strip()[-2000:]}
        )
        print(f"{'ok  ' if passed else 'FAIL'} {name} ({seconds:.0f} s)", flush=True)
        if not passed:
            print(said.strip()[-2000:], flush=True)
        return passed


def end_like_ctrl_c() -> None:
    """Let whatever asks this process to end, end its steps as well."""
    for asked in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, signal.default_int_handler)


def device_facts() -> dict[str, Any] | None:
    """The first CUDA device, None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def without_folders(text: str) -> str:
    """Without the names of folders that were made for one run."""
    return re.sub(re.escape(tempfile.gettempdir()) + r"/tmp\w+/", "", text)


def _tests(check: Check) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml")]
    files = [str(ROOT / "tests" / name) for name in ("test_cuda.py", "test_devices.py")]
    check.run("tests", [*command, *files], 150)


def _training(check: Check, work: Path) -> None:
    """Every method of the full-size comparison, for a few steps on phantoms."""
    plan = (ROOT / "experiments" / "gpu_full_size.toml").read_text(encoding="utf-8")
    (work / "training.toml").write_text(
        plan.replace('"device" = "cpu"', '"device" = "cuda"'), encoding="utf-8"
    )
    command = [sys.executable, "-m", "ppcmi_fast.cli", "experiment", "run", str(work / "training.toml")]
    check.run("training", [*command, "--smoke", "--out", str(work / "runs")], 150)


def _sanitize(check: Check, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        check.missing(f"compute-sanitizer {tool}", "compute-sanitizer is not on PATH")
        return
    program = [sys.executable, str(ROOT / "benchmarks" / "gpu_all_kernels.py")]
    check.run(
        f"compute-sanitizer {tool}", [sanitizer, "--tool", tool, "--error-exitcode", "9", *program], 150
    )


def _build_lab(check: Check, program: Path) -> None:
    kernels = ROOT / "csrc" / "kernels"
    sources = [
        ROOT / "benchmarks" / "lab" / "klt_quantize_lab.cu",
        kernels / "cuda" / "klt_quantize.cu",
        kernels / "steps.cpp",
        kernels / "codebooks.cpp",
    ]
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        check.missing("lab: build", "nvcc is not on PATH")
        return
    command = [nvcc, "-std=c++17", "-O3", "-arch=native", "-o", str(program), *map(str, sources)]
    check.run("lab: build", command, 150)


def _benchmark(check: Check, work: Path) -> dict[str, Any] | None:
    figures = work / "figures.json"
    command = [
        sys.executable,
        "-m",
        "ppcmi_fast.cli",
        "bench",
        "klt",
        "--suite",
        "gpu",
        "--json",
        str(figures),
    ]
    check.run("benchmark", command, 200)
    # Written as it goes: what was measured before the time was up counts.
    return json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else None


def main() -> int:
    """Run all steps and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument(
        "--seconds", type=float, default=BUDGET_SECONDS, help="what is not done then is left out"
    )
    parser.add_argument("--skip-build", action="store_true", help="check what is installed")
    given = parser.parse_args()
    device = device_facts()
    if device is None:
        print(
            "gpu-check: expected a CUDA device, found none; run it on a machine that has one", file=sys.stderr
        )
        return 2
    end_like_ctrl_c()
    check = Check(given.seconds)
    options = [f"--seconds {given.seconds:g}"] if given.seconds != BUDGET_SECONDS else []
    options += ["--skip-build"] if given.skip_build else []
    command = " ".join(["python benchmarks/gpu_check.py", *options]) if options else "make gpu-check"
    result: dict[str, Any] = {"command": command, "device": device}
    architecture = device["compute_capability"].replace(".", "")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
        build += ["--config-settings=cmake.define.PPCMI_CUDA=ON"]
        build += [f"--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES={architecture}", str(ROOT)]
        if given.skip_build or check.run("build", build, 180):
            lab = work / "klt_quantize_lab"
            check.together(
                lambda: _tests(check),
                lambda: _training(check, work),
                lambda: _sanitize(check, "memcheck"),
                lambda: _sanitize(check, "racecheck"),
                lambda: _build_lab(check, lab),
            )
            for size in LAB_SIZES if lab.is_file() else ():
                check.run(f"lab: {' '.join(size)}", [str(lab), *size], 30)
            result["benchmark"] = _benchmark(check, work)
    result["steps"] = check.steps
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(without_folders(json.dumps(result, indent=1)) + "\n", encoding="utf-8")
    print(f"wrote {os.path.relpath(given.json)}")
    return 0 if all(step["passed"] for step in check.steps) else 1


if __name__ == "__main__":
    sys.exit(main())
