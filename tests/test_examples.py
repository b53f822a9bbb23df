"""The programs under examples/ run and show what their README says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def program(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_a_rotated_cache_is_closer_than_a_plain_one_of_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    example = program("rotate_and_quantize")
    rows = {row[0]: row[1:] for row in example["compare"](4, 64, 128, "cpu")}
    plain, rotated = rows["4 bits, absmax"], rows["4 bits, rotated"]
    assert rotated[0] <= plain[0] * 1.01
    assert rotated[1] < 0.8 * plain[1] and rotated[2] < plain[2]
    assert rows["8 bits, rotated"][1] < rotated[1] < rows["2 bits, rotated"][1]
    assert rows["2 bits, rotated"][0] < rotated[0] < rows["float16"][0] / 3
    example["main"](["--heads", "2", "--tokens", "16", "--dim", "64"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_training_through_the_transform_works_and_equals_the_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = program("differentiable_transform")
    assert example["gradient_error"]("cpu") < 1e-4
    ours, theirs = example["train"]("cpu", 40), example["train"]("cpu", 40, backend="torch")
    assert ours[-1] < 0.5 * ours[0]
    assert ours == pytest.approx(theirs, rel=1e-2)
    example["main"](["--steps", "2"])
    assert "after 2 steps" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings(
    # torch warns of what its own compiler does.
    "ignore:.*torch.jit.script_method:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
def test_training_through_torch_compile_gives_the_same_losses() -> None:
    example = program("differentiable_transform")
    compiled = example["train"]("cpu", 10, compiled=True)
    assert compiled == pytest.approx(example["train"]("cpu", 10), rel=1e-2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "rotate_and_quantize",
            ["--dim", "6"],
            "--dim: expected a multiple of 4, so that 2 bits fill bytes, got 6",
        ),
        ("rotate_and_quantize", ["--tokens", "0"], "--tokens: expected at least 1, got 0"),
        ("rotate_and_quantize", ["--device", "tpu"], "invalid choice"),
        ("differentiable_transform", ["--steps", "0"], "--steps: expected at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_named(
    name: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        program(name)["main"](arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
