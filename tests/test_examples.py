"""What the examples claim, on small sizes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import differentiable_transform
import pytest
import rotate_and_quantize
import torch

SMALL = ["--tokens", "64", "--heads", "2", "--dim", "64"]


def test_rotation_lowers_the_error_at_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.name: row for row in rotate_and_quantize.main(SMALL)}
    plain, rotated = rows["absmax int4"], rows["rotated 4-bit"]
    assert rotated.cache_bytes == plain.cache_bytes == 2 * 2 * 64 * (64 // 2 + 2)
    assert rotated.cache_error < plain.cache_error
    assert rotated.attention_error < plain.attention_error
    printed = capsys.readouterr().out
    assert all(row.name in printed and str(row.cache_bytes) in printed for row in rows.values())


def test_more_bits_are_more_bytes_and_less_error() -> None:
    rows = rotate_and_quantize.main(SMALL)[2:]
    assert [row.name for row in rows] == ["rotated 2-bit", "rotated 4-bit", "rotated 8-bit"]
    for fewer, more in pairwise(rows):
        assert fewer.cache_bytes < more.cache_bytes
        assert fewer.cache_error > more.cache_error
        assert fewer.attention_error > more.attention_error


def test_a_seed_decides_the_table() -> None:
    assert rotate_and_quantize.main(SMALL) == rotate_and_quantize.main(SMALL)
    assert rotate_and_quantize.main(SMALL) != rotate_and_quantize.main([*SMALL, "--seed", "1"])


def test_zero_positions_stay_zero() -> None:
    params = rotate_and_quantize.ROTATION_KEY.klt_params("image", 1, 64)
    zeros = torch.zeros(1, 2, 3, 64, dtype=torch.float16)
    cached = rotate_and_quantize.quantize(zeros, params, 4)
    assert not rotate_and_quantize.dequantize(cached, params, 4, zeros.shape).any()
    assert not rotate_and_quantize.absmax_int4(zeros).any()


def test_gradients_equal_the_reference_and_the_net_learns() -> None:
    torch._dynamo.reset()
    result = differentiable_transform.main(["--steps", "25", "--compiler", "aot_eager"])
    assert result.gradient_difference <= differentiable_transform.TOLERANCE
    assert result.compiled_difference is not None
    assert result.compiled_difference <= differentiable_transform.TOLERANCE
    assert result.losses[-1] < 0.8 * result.losses[0]


def test_differing_gradients_end_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differentiable_transform, "difference", lambda ours, theirs: float("nan"))
    with pytest.raises(SystemExit, match="gradients: expected a difference of at most"):
        differentiable_transform.main(["--steps", "1", "--compiler", "none"])


ROTATE, TRAIN = rotate_and_quantize.main, differentiable_transform.main


@pytest.mark.parametrize(
    ("main", "arguments", "expected", "got"),
    [
        (ROTATE, ["--tokens", "0"], "--tokens: expected an integer of at least 1", "got '0'"),
        (ROTATE, ["--heads", "two"], "--heads: expected an integer of at least 1", "got 'two'"),
        (ROTATE, ["--dim", "66"], "--dim: expected a multiple of 4", "got 66"),
        (ROTATE, ["--dim", "268"], "odd m <= 63", "got 268"),
        (ROTATE, ["--device", "gpu"], "--device: expected 'cpu' or 'cuda'", "got 'gpu'"),
        (ROTATE, ["--device", "cuda:99"], "--device: expected a device that is there", "got 'cuda:99'"),
        (TRAIN, ["--steps", "-1"], "--steps: expected an integer of at least 1", "got '-1'"),
        (TRAIN, ["--dim", "7"], "--dim: dim: expected m * 2^a", "got 7"),
        (TRAIN, ["--compiler", "gcc"], "--compiler: expected one of", "got 'gcc'"),
    ],
)
def test_bad_arguments_are_named(
    main: Callable[[list[str]], object],
    arguments: list[str],
    expected: str,
    got: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert expected in message and got in message


def test_the_lines_of_the_readme() -> None:
    text = (Path(rotate_and_quantize.__file__).parent / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    torch.testing.assert_close(names["back"], names["x"], rtol=1e-4, atol=1e-5)
    assert rotate_and_quantize.relative_error(names["restored"], names["x"]) < 0.2
