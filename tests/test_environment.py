"""What a figure says of the machine that gave it, and what `ppcmi doctor` says of this one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppcmi_fast import environment as env
from ppcmi_fast.cli.app import app


def test_environment_explains_numbers_and_names_no_place() -> None:
    facts = env.describe_environment(threads=3)
    assert facts["threads"] == 3
    assert facts["cores"] >= 1
    assert "torch" in facts["libraries"]
    text = json.dumps(facts)
    assert str(Path.home()) not in text
    assert sys.prefix not in text


@pytest.mark.parametrize("name", ["flags", "Features"])
def test_isa_flags_are_read(tmp_path: Path, name: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        f"processor\t: 0\nmodel name\t: Some CPU\n{name}\t\t: fpu avx2 fma zzz\n\n{name}: none\n"
    )
    assert env.cpu_info(cpuinfo) == ("Some CPU", ["fma", "avx2"])
    assert env.cpu_info(tmp_path / "absent")[1] == []


def test_extras_come_from_the_metadata() -> None:
    lines = [
        "numpy",
        'monai>=1.5; extra == "train"',
        "jinja2 ; extra == 'train'",
        'ppcmi-fast[train]; extra == "dev"',
    ]
    assert env.parse_extras(lines) == {"train": ("monai", "jinja2")}


def test_doctor_tells_and_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "extras", lambda: [env.Extra("train", ("monai",), ("monai",))])
    monkeypatch.setattr(env, "kernels", lambda: {"_cpu": False, "_cuda": False})
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for part in (
        "Python",
        "torch",
        "ISA",
        "CUDA",
        "CPU kernels",
        'pip install "ppcmi-fast[train]"',
        "2 to look at",
    ):
        assert part in result.stdout, part
