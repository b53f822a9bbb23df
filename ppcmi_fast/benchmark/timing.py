"""Calls that take turns: on a noisy machine a slow moment then hits all alike, and ratios within a round hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Calls = dict[str, Callable[[], Any]]

EVICTING_BYTES = 128 << 20  # more than any cache of today's machines that one core fills
SAMPLE_SECONDS = 1e-3  # a shorter call is repeated within a sample, which a clock's tick would blur


def settle_allocator() -> None:
    """Free one large block, after which the C library keeps freed memory instead of returning it to the system.

    A process that works on tensors comes to this state by itself sooner or later; before, results of some megabytes are
    paged in anew at some calls and not at others, which takes longer than the call.
    """
    torch.ones(31 << 18)  # 31 MiB: glibc's threshold follows what is freed up to 32 MiB


def _seconds(call: Callable[[], Any], count: int, cuda: bool) -> float:
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / count
    start_time = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start_time) / count


def take_turns(calls: Calls, rounds: int, *, cuda: bool = False) -> dict[str, list[float]]:
    """Seconds of each call in each round, after two calls that are not counted.

    Args:
        calls: what to measure, by name.
        rounds: samples of each.
        cuda: measure with events on the current stream.
    """
    if not cuda:
        settle_allocator()
    counts = {}
    for name, call in calls.items():
        call()
        once = _seconds(call, 1, cuda)
        counts[name] = min(1000, max(1, round(SAMPLE_SECONDS / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # so that each finds the caches as it leaves them itself, not as the one before did
            samples[name].append(_seconds(call, counts[name], cuda))
    return samples


def take_turns_cold(calls: Calls, rounds: int) -> dict[str, list[float]]:
    """Seconds of single calls, each after the caches were filled with something else: as in a network's midst."""
    elsewhere = torch.zeros(EVICTING_BYTES // 4)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            elsewhere.add_(1)
            samples[name].append(_seconds(call, 1, cuda=False))
    return samples


def summarise(samples: dict[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """Of each call the median and quartiles in microseconds, and the median over rounds of its time over `ours`."""
    out = {}
    for name, times in samples.items():
        low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        ratios = [t / mine for t, mine in zip(times, samples[ours], strict=True)]
        out[name] = {
            "median_us": round(middle * 1e6, 3),
            "low_us": round(low * 1e6, 3),
            "high_us": round(high * 1e6, 3),
            "over_ours": round(statistics.median(ratios), 4),
        }
    return out
