"""The host shim bites: a right kernel gives one result in every order of threads, and each mistake is caught.

The last test removes each barrier of the real kernels in turn.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cuda_on_host
import pytest
import torch

SOURCES = [
    cuda_on_host.ROOT / "tests" / "cuda_shim" / "seeded_bugs.cu",
    cuda_on_host.CSRC / "kernels" / "host_shim" / "shim.cpp",
]
BLOCKS, TILES, SIDE = 3, 4, 8


def run(variant: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    program = cuda_on_host.build("seeded_bugs", SOURCES, ["-O1", "-g", *flags], [])
    return subprocess.run([program, variant], capture_output=True, text=True, check=False)


def results(variant: str) -> list[list[float]]:
    """Of each order of threads."""
    done = run(variant)
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all(line.startswith("bits ") for line in lines)
    words = [[int(word, 16) for word in line.split()[1:]] for line in lines]
    return [list(struct.unpack(f"{len(row)}f", struct.pack(f"{len(row)}I", *row))) for row in words]


def transposed_and_summed() -> list[float]:
    tiles = torch.arange(1.0, BLOCKS * TILES * SIDE**2 + 1).view(BLOCKS, TILES, SIDE, SIDE)
    return [*tiles.transpose(2, 3).flatten().tolist(), *tiles.sum((1, 2, 3)).tolist()]


def rotated() -> list[float]:
    values = torch.arange(1.0, BLOCKS * 64 + 1).view(-1, 32).roll(-4, 1)
    return values.flatten().tolist()


@pytest.mark.parametrize(
    ("variant", "expected"), [("none", transposed_and_summed), ("rotation", rotated)], ids=lambda v: str(v)
)
def test_a_right_kernel_gives_the_right_result_in_every_order(
    variant: str, expected: Callable[[], list[float]]
) -> None:
    for row in results(variant):
        assert row[: len(expected())] == expected()


def test_a_warp_of_less_than_32_threads_works() -> None:
    rows = results("short_warp")
    assert all(row == rows[0] for row in rows)
    groups = torch.arange(1.0, 49).view(-1, 16).sum(1, keepdim=True).expand(-1, 16)
    assert rows[0][:48] == groups.flatten().tolist()


def test_shuffles_and_votes_give_what_a_warp_gives() -> None:
    rows = results("collectives")
    assert all(row == rows[0] for row in rows)
    votes = sum(1 << lane for lane in range(0, 16, 3))
    for thread in range(64):
        warp, lane = thread // 32 * 32, thread % 32
        before, after = 1 + warp + (lane - 1) % 32, 1 + warp + (lane + 2 if lane < 30 else lane)
        assert rows[0][4 * thread : 4 * thread + 4] == [before, after, votes, float(warp == 32)]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("no_barrier_after_write", transposed_and_summed),
        ("no_barrier_before_overwrite", transposed_and_summed),
        ("no_barrier_between_warps", transposed_and_summed),
        ("blocks_share_output", transposed_and_summed),
        ("uninitialized_read", transposed_and_summed),
        ("no_syncwarp", rotated),
    ],
    ids=lambda v: str(v),
)
def test_a_race_or_an_unwritten_read_shows_in_the_result(
    variant: str, expected: Callable[[], list[float]]
) -> None:
    assert any(row[: len(expected())] != expected() for row in results(variant))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("barrier_after_exit", "divergent barrier: 32 of 64 threads wait .* has exited"),
        ("barrier_in_each_branch", "divergent barrier: .* waits at __syncthreads at seeded_bugs.cu"),
        ("caller_outside_mask", "with mask 0xffff is called by lane .*, which the mask does not name"),
        ("source_outside_mask", "source lane: expected a lane that the mask names"),
        ("masked_lane_exited", "for lane 5: thread .* has exited"),
        ("masked_lane_elsewhere", "for lane 16: thread .* waits at __syncthreads"),
        ("masked_lane_absent", "for lane 16, which the block does not have"),
    ],
)
def test_a_misused_barrier_or_shuffle_is_named_in_every_order(variant: str, message: str) -> None:
    done = run(variant)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 5
    for line in lines:
        assert line.startswith("error block (") and re.search(message, line), line


def _has_address_sanitizer() -> bool:
    asked = subprocess.run(
        [cuda_on_host.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    )
    return Path(asked.stdout.strip()).is_absolute()


@pytest.mark.skipif(
    not _has_address_sanitizer(), reason="the C++ compiler has no AddressSanitizer library (libasan)"
)
def test_an_index_past_shared_memory_is_caught_by_the_address_sanitizer() -> None:
    flags = ("-fsanitize=address", "-fno-omit-frame-pointer")
    assert run("none", flags).returncode == 0
    done = run("index_past_end", flags)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
    assert "seeded_bugs.cu" in done.stderr


BARRIERS = [
    (path.name, number)
    for path in sorted((cuda_on_host.CSRC / "kernels" / "cuda").glob("*.cu*"))
    for number, line in enumerate(path.read_text().splitlines())
    if line.strip() == "__syncthreads();"
]


# In a process of its own: the loader takes two modules of one name for one. Prints a digest of each result, there and
# back, of every kind of mixing, over both layouts and in three orders.
PROGRAM = """
import hashlib, sys
from pathlib import Path
import cuda_on_host, torch
from ppcmi_fast.keys import SiteKey
from ppcmi_fast.ops.kernels import Kernels

module = cuda_on_host.load(Path(sys.argv[1]), Path(sys.argv[2]))
kernels = Kernels(lambda: module, lambda x: (0, 0))
key = SiteKey(bytes(range(32)), "tests")
for mixing, dim in (("hadamard", 64), ("hadamard", 96), ("hadamard", 256), ("haar", 40), ("haar", 136)):
    params = key.klt_params("image", 4, dim, mixing)
    mix = params.signs if params.matrix is None else params.matrix
    handle = kernels.material(mix, params.factors, params.perm, params.offset)
    x = torch.randn(2, dim, 9, 16, generator=torch.Generator().manual_seed(dim))
    for bits in (4, 8):
        for layout in (torch.contiguous_format, torch.channels_last):
            for order in ("forward", "reverse", "shuffled"):
                module.set_order(order, 1)
                codes = kernels.klt_quantize(x.contiguous(memory_format=layout), handle, 1, bits, True)
                back = kernels.klt_dequantize(codes, handle, 1, bits, torch.float32)
                for result in (codes, back):
                    print(hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest())
"""


def digests(csrc: Path, built: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(csrc), str(built)],
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parent)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:  # without a barrier an address from memory that nobody wrote can lead anywhere
        return [f"ended by signal {-done.returncode}"]
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), BARRIERS)
def test_every_barrier_of_the_real_kernels_is_missed(name: str, line: int, tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(cuda_on_host.CSRC, sources)
    header = sources / "kernels" / "cuda" / name
    lines = header.read_text().splitlines(keepends=True)
    lines[line] = "\n"
    header.write_text("".join(lines))
    right = digests(cuda_on_host.CSRC, cuda_on_host.BUILT)
    # Planes of a small dense mixing come back from 8 bits by another sum than other layouts do.
    assert len(right) == 5 * 2 * 2 * 3 * 2 and len(set(right)) == 5 * 2 * 2 + 1
    assert digests(sources, tmp_path / "build") != right


def test_there_are_barriers_to_remove() -> None:
    assert len(BARRIERS) >= 6
