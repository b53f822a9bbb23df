"""`make gpu-check` without a GPU: it says so, its steps are kept, and the kernel lab's versions are right."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_on_host
import pytest
import torch

BENCHMARKS = cuda_on_host.ROOT / "benchmarks"
KERNELS = cuda_on_host.CSRC / "kernels"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu_check: Any = _load()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a device it would run for minutes")
def test_without_a_device_it_says_so_and_writes_nothing(tmp_path: Any) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "expected a CUDA device, found none" in done.stderr
    assert not out.exists()


def test_steps_keep_what_was_said_and_whether_it_passed() -> None:
    check = gpu_check.Check(60)
    assert check.run("fine", [sys.executable, "-c", "print('all well')"], 30)
    assert not check.run("wrong", [sys.executable, "-c", "import sys; sys.exit('bad')"], 30)
    assert not check.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 1.5)
    assert not check.run("absent", ["no-such-program"], 30)
    said = {step["step"]: (step["passed"], step["said"]) for step in check.steps}
    assert said["fine"] == (True, "all well") and said["wrong"] == (False, "bad")
    assert "stopped after" in said["slow"][1] and "no-such-program" in said["absent"][1]


def test_parts_beside_each_other_are_all_kept_and_an_error_of_one_is_a_failed_step() -> None:
    check = gpu_check.Check(60)
    sleep = [sys.executable, "-c", "import time; time.sleep(1)"]
    check.together(*(lambda name=name: check.run(name, sleep, 30) for name in ("one", "two")))
    assert {(step["step"], step["passed"]) for step in check.steps} == {("one", True), ("two", True)}
    check.together(lambda: 1 / 0)
    assert not check.steps[2]["passed"] and check.steps[2]["said"] == "ZeroDivisionError: division by zero"


def _gone(pid: int) -> bool:
    """Whether a process is no more, or a zombie that nobody has waited for yet."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if "State:\tZ" in state:
            return True
        time.sleep(0.1)
    return False


# As compute-sanitizer does: what works is a child of what is waited for.
PARENT = """import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""


def test_what_a_step_started_ends_with_its_time(tmp_path: Path) -> None:
    check, noted = gpu_check.Check(60), tmp_path / "pid"
    assert not check.run("slow", [sys.executable, "-c", PARENT, str(noted)], 5)
    assert "stopped after" in check.steps[0]["said"]
    assert _gone(int(noted.read_text()))


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_check_ends_its_steps(tmp_path: Path, asked: signal.Signals) -> None:
    noted = tmp_path / "pid"
    steps = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_check\n"
        "gpu_check.end_like_ctrl_c(); check = gpu_check.Check(90)\n"
        f"check.together(lambda: check.run('slow', [sys.executable, '-c', {PARENT!r}, {str(noted)!r}], 60))"
    )
    with subprocess.Popen([sys.executable, "-c", steps], stderr=subprocess.PIPE, text=True) as process:
        for _ in range(300):
            if noted.is_file() and noted.read_text():
                break
            time.sleep(0.1)
        process.send_signal(asked)
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said and process.returncode != 0
    assert _gone(int(noted.read_text()))


def test_what_is_kept_names_no_folder_of_a_run() -> None:
    folder = tempfile.mkdtemp()
    os.rmdir(folder)
    said = f"ppcmi bench klt --json {folder}/figures.json"
    assert gpu_check.without_folders(said) == "ppcmi bench klt --json figures.json"


def test_a_step_after_the_time_is_up_does_not_run() -> None:
    check = gpu_check.Check(0)
    assert not check.run("late", [sys.executable, "-c", "print(1)"], 30)
    assert check.steps[0]["said"] == "no time left"


@pytest.mark.parametrize("channels", [2, 64, 256])
def test_all_versions_of_the_kernel_lab_are_right(channels: int) -> None:
    sources = [
        BENCHMARKS / "lab" / "klt_quantize_lab.cu",
        KERNELS / "cuda" / "klt_quantize.cu",
        KERNELS / "host_shim" / "shim.cpp",
        KERNELS / "steps.cpp",
        KERNELS / "codebooks.cpp",
    ]
    program = cuda_on_host.build("klt_quantize_lab", sources, ["-O1"], [])
    done = subprocess.run([program, str(channels), "2", "70"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [f"version {version}: 0 wrong codes" for version in (1, 2, 3, 4)]
    assert done.stdout.splitlines() == [*lines, "times: not measured without a GPU"]


def test_the_lab_refuses_sizes_that_it_cannot_take() -> None:
    program = next(cuda_on_host.BUILT.glob("*/klt_quantize_lab"), None)
    if program is None:
        pytest.skip("the lab is built by the test above, which was not run")
    done = subprocess.run([program, "48"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "a power of two, 2 to 256" in done.stderr
