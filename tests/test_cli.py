"""The command: what it says and which exit code it leaves. Training is replaced by a fabricated run."""

from __future__ import annotations

import io
import json
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fabricated_run import make_metrics, make_run
from rich.console import Console
from typer.testing import CliRunner, Result

from ppcmi_fast.cli.app import Modality, app
from ppcmi_fast.cli.table import results_table
from ppcmi_fast.errors import DataError

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

COMMANDS = ("demo", "phantom", "keygen", "federate", "segment", "report", "bench", "data", "doctor")


def ppcmi(*arguments: str | int | Path) -> Result:
    """Run the command inside this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_error_line(result: Result) -> str:
    """The error of a command that failed as it should: exit code 2, one line, no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


class Calls:
    """What the replaced `federate` was called with, and what it shall do."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.raises: BaseException | None = None

    def federate(
        self, config: Any, out: Path, *, resume: bool, overwrite: bool, console: Any
    ) -> dict[str, Any]:
        """Leave a fabricated run in `out`."""
        self.last = {"config": config, "out": out, "resume": resume, "overwrite": overwrite}
        if self.raises is not None:
            raise self.raises
        make_run(out)
        return make_metrics()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Replace the module that trains."""
    found = Calls()
    module = ModuleType("ppcmi_fast.federation.run")
    module.federate = found.federate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppcmi_fast.federation.run", module)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that exists; what is in it is the business of the replaced module."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_help_lists_the_commands_and_loads_no_torch() -> None:
    code = (
        "import sys; from ppcmi_fast.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules), 'heavy import'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f" {command} " in result.stdout


def test_help_of_every_command() -> None:
    for command in (*COMMANDS, "bench klt", "data check"):
        assert ppcmi(*command.split(), "--help").exit_code == 0


def test_version() -> None:
    from ppcmi_fast import __version__

    assert ppcmi("--version").stdout.strip() == f"ppcmi-fast {__version__}"


def test_federate_writes_report_and_table(calls: Calls, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = ppcmi("federate", data, "--out", out, "--set", "mapper.steps=7", "--size", 64, "--seed", 3)
    assert result.exit_code == 0, result.output
    config = calls.last["config"]
    assert (config.data, config.size, config.seed, config.mapper.steps) == (data.resolve(), 64, 3, 7)
    assert (calls.last["resume"], calls.last["overwrite"]) == (False, False)
    for part in ("PPCMI (ours)", "Dice", "HD95", "ASD", "payload", "latency", "report.html", "metrics.json"):
        assert part in result.stdout, part
    assert (out / "report.html").is_file()
    kept = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert 0 < kept["seconds"]["total"] < 100


def test_federate_takes_a_config_file(calls: Calls, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('data = "data"\nsize = 96\n', encoding="utf-8")
    assert ppcmi("federate", config, "--out", tmp_path / "run", "--resume", "--size", 160).exit_code == 0
    assert (calls.last["config"].data, calls.last["config"].size) == (data.resolve(), 160)
    assert calls.last["resume"] is True


def test_a_resumed_run_keeps_no_total(calls: Calls, data: Path, tmp_path: Path) -> None:
    ppcmi("federate", data, "--out", tmp_path / "run", "--resume")
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    # The fabricated figure is still there: the command added none of its own.
    assert kept["seconds"]["total"] == 1260.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["federate", "nowhere", "--out", "run"], "nowhere"),
        (["federate", ".", "--out", "run", "--resume", "--overwrite"], "at most one"),
        (["federate", ".", "--out", "run", "--set", "mapper.stepz=3"], "mapper.stepz"),
        (["federate", ".", "--out", "run", "--set", "nonsense"], "name=value"),
        (["report", "nowhere"], "nowhere"),
        (["report", "."], "no metrics.json"),
        (["segment", "nothing.png", "--run", "run", "--site", "a", "--out", "m.png"], "IMAGE"),
        (["segment", "image.png", "--run", "run", "--site", "a", "--out", "m.png"], "--run"),
        (["segment", "image.png", "--run", ".", "--site", "a", "--out", "m.jpg"], "--out"),
        (["segment", "image.png", "--run", ".", "--site", "a", "--out", "image.png"], "--overwrite"),
        (["phantom", "cardiac", "."], "OUT"),
        (["bench", "klt", "--bits", "3"], "--bits"),
        (["bench", "klt", "--bits", "2", "--channels", "3"], "--bits"),
        (["bench", "klt", "--mixing", "fourier"], "--mixing: expected one of"),
        (["bench", "klt", "--operation", "svd"], "--operation: expected one of"),
        (["data", "check", "image.png"], "expected a folder, got a file"),
        (["data", "check", ".", "--layout", "dicomdir"], "--layout: expected auto or one of"),
        (["data", "check", ".", "--sheet", "sheet.jpg"], "--sheet: expected a PNG file"),
        (["data", "check", ".", "--max-broken", "7"], "--max-broken: expected a share"),
        (["bench", "klt", "--suite", "cpu"], "--json: expected a file"),
    ],
)
def test_mistakes_are_one_line(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.png").write_bytes(b"")
    assert text in one_error_line(ppcmi(*arguments))
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_run_is_one_line(calls: Calls, data: Path, tmp_path: Path) -> None:
    calls.raises = DataError(
        "masks/3.png: expected values below 2,\n got 7; fix the mask [bold]or[/] give --set classes=8"
    )
    line = one_error_line(ppcmi("federate", data, "--out", tmp_path / "run"))
    assert "expected values below 2, got 7; fix the mask [bold]or[/]" in line


def test_a_bug_keeps_its_traceback(calls: Calls, data: Path, tmp_path: Path) -> None:
    calls.raises = ZeroDivisionError("a bug")
    assert isinstance(ppcmi("federate", data, "--out", tmp_path / "run").exception, ZeroDivisionError)


def test_a_missing_extra_names_its_cure(calls: Calls, data: Path, tmp_path: Path) -> None:
    calls.raises = ModuleNotFoundError("No module named 'monai'", name="monai")
    assert 'pip install "ppcmi-fast[train]"' in one_error_line(
        ppcmi("federate", data, "--out", tmp_path / "run")
    )


def test_a_full_disk_is_one_line(calls: Calls, data: Path, tmp_path: Path) -> None:
    calls.raises = OSError(28, "No space left on device", "checkpoint")
    assert "checkpoint: No space left" in one_error_line(ppcmi("federate", data, "--out", tmp_path / "run"))


def test_interrupt_says_how_to_go_on(calls: Calls, data: Path, tmp_path: Path) -> None:
    calls.raises = KeyboardInterrupt()
    out = tmp_path / "a run"
    result = ppcmi("federate", data, "--out", out, "--set", "mapper.steps=9", "--size", 64)
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if "--resume" in line]
    # What it says can be run as it is, and does the same run.
    words = shlex.split(line)
    assert words[0] == "ppcmi"
    calls.raises = None
    assert ppcmi(*words[1:]).exit_code == 0
    assert (calls.last["resume"], calls.last["config"].size, calls.last["config"].mapper.steps) == (
        True,
        64,
        9,
    )
    assert calls.last["out"] == out


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_of_the_real_process(tmp_path: Path, asked: signal.Signals) -> None:
    code = (
        "import sys, time, types\n"
        "run = types.ModuleType('ppcmi_fast.federation.run')\n"
        "def federate(*a, **k):\n    print('training', flush=True)\n    time.sleep(60)\n"
        "run.federate = federate\n"
        "sys.modules['ppcmi_fast.federation.run'] = run\n"
        "from ppcmi_fast.cli import main\n"
        f"sys.argv = ['ppcmi', 'federate', {str(tmp_path)!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "training"
        process.send_signal(asked)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("modality", ["psfh", "ultrasound"])
def test_demo_makes_phantoms_and_runs(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    written: list[str] = []

    def write(kind: str, out: Path, **sizes: int) -> None:
        written.append(kind)
        out.mkdir(parents=True)

    from ppcmi_fast.data import phantom

    monkeypatch.setattr(phantom, "write_native" if modality == "psfh" else "write_phantom", write)
    out = tmp_path / "runs" / "demo"
    chosen = () if modality == "psfh" else ("--modality", modality)
    for _ in range(2):
        result = ppcmi("demo", "--out", out, *chosen, "--set", "mapper.steps=5")
        assert result.exit_code == 0, result.output
    # The phantoms are the same every time, so the second run uses the first one's.
    assert written == [modality]
    config = calls.last["config"]
    assert config.data == (tmp_path / "runs" / f"demo-{modality}-phantoms").resolve() and config.data.is_dir()
    assert (config.mapper.steps, config.codec.phantom) == (5, "cardiac" if modality == "psfh" else modality)


def test_every_kind_of_phantom_is_a_modality() -> None:
    from ppcmi_fast.data.phantom import MODALITIES, NATIVE_KINDS

    assert [modality.value for modality in Modality] == [*NATIVE_KINDS, *MODALITIES]


def test_report_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", examples=False)
    result = ppcmi("report", run)
    assert result.exit_code == 0, result.output
    assert (run / "report.html").is_file()
    assert "PPCMI (ours)" in result.stdout


def test_segment_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    module = ModuleType("ppcmi_fast.federation.predict")

    def segment_image(*arguments: Path | str | int | None) -> dict[str, int]:
        seen.append(arguments)
        return {"0": 900, "1": 124}

    module.segment_image = segment_image  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppcmi_fast.federation.predict", module)
    image, out = tmp_path / "image.png", tmp_path / "mask.png"
    image.write_bytes(b"")
    result = ppcmi("segment", image, "--run", tmp_path, "--site", "north", "--out", out)
    assert result.exit_code == 0, result.output
    assert seen == [(tmp_path, "north", image, out, None)]
    assert "class 1: 124 px" in result.stdout
    result = ppcmi("segment", image, "--run", tmp_path, "--site", "north", "--out", out, "--views", 3)
    assert result.exit_code == 0, result.output
    assert seen[1][-1] == 3


def test_keygen_is_private_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    result = ppcmi("keygen", path)
    assert result.exit_code == 0, result.output
    secret = path.read_bytes()
    assert len(secret) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret.hex() not in result.output
    assert repr(secret) not in result.output
    line = one_error_line(ppcmi("keygen", path))
    assert str(path) in line
    assert path.read_bytes() == secret


@pytest.mark.parametrize("modality", ["cardiac", "ultrasound"])
def test_phantom_writes_the_layout(tmp_path: Path, modality: str) -> None:
    out = tmp_path / "data"
    sizes = ("--sites", 2, "--subjects", 2, "--slices", 1, "--size", 32)
    result = ppcmi("phantom", modality, out, *sizes)
    assert result.exit_code == 0, result.output
    assert len(list((out / "images").iterdir())) == 4
    assert len(list((out / "masks").iterdir())) == 4
    assert (out / "manifest.csv").read_text(encoding="utf-8").startswith("image,mask,subject,site")
    assert "OUT" in one_error_line(ppcmi("phantom", modality, out))


def test_phantom_writes_a_published_layout(tmp_path: Path) -> None:
    out = tmp_path / "data"
    result = ppcmi("phantom", "psfh", out, "--sites", 2, "--subjects", 3, "--size", 32)
    assert result.exit_code == 0, result.output
    assert "3 subjects of 2 sites" in result.stdout
    assert (out / "image_mha" / "00001.mha").is_file() and (out / "sites.csv").is_file()
    assert "OUT" in one_error_line(ppcmi("phantom", "psfh", out))
    other = tmp_path / "other"
    assert "--slices" in one_error_line(ppcmi("phantom", "psfh", other, "--slices", 2))
    assert "--subjects" in one_error_line(ppcmi("phantom", "psfh", other, "--subjects", 2))
    assert not other.exists()


def test_bench_klt_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "klt.json"
    arguments = ("--batch", 1, "--channels", 16, "--size", 8, "--rounds", 3, "--threads", 1, "--json", out)
    result = ppcmi("bench", "klt", *arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["case"]["channels"] == 16 and figures["rounds"] == 3
    assert {"ours", "eager", "memcpy", "matmul"} <= set(figures["calls"])
    assert all(0 < times["low_us"] <= times["high_us"] for times in figures["calls"].values())


def test_table_has_a_column_for_each_site() -> None:
    table = results_table(make_metrics(unit="px"), 80)
    heads = [str(column.header) for column in table.columns]
    assert heads == ["method", "Dice", "north", "south", "west", "HD95 px", "ASD px"]
    assert table.row_count == 4


@pytest.mark.parametrize(("width", "missing"), [(200, 0), (80, 0), (60, 1), (40, 2)])
def test_narrow_terminals_cut_no_number(width: int, missing: int) -> None:
    metrics = make_metrics(unit="px")
    for scores in metrics["methods"].values():
        dice = scores["dice"]["site"]
        dice["east"] = dice["north"]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(metrics, width))
    text = " ".join(console.export_text().split())
    for scores in metrics["methods"].values():
        numbers = [f"{scores['dice']['mean']:.3f}"]
        numbers += [f"{scores[measure]['mean']:.2f}" for measure in ("hd95", "asd") if missing < 2]
        numbers += [f"{value:.3f}" for value in scores["dice"]["site"].values() if not missing]
        assert all(f" {number} " in text for number in numbers) and "…" not in text
    assert ("east" in text) == (not missing) and ("HD95" in text) == (missing < 2 or "HD95, ASD:" in text)
    told = ["", "Dice of each site: report.html", "Dice of each site, HD95, ASD: report.html"][missing]
    assert told in text and ("report.html" in text) == bool(told)


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ppcmi_fast.cli", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    # The best of three, since other work on the machine may slow one of them; torch alone takes longer.
    assert min(seconds) < 1.0
