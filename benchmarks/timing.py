"""Timing several functions against one another, round by round in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SAMPLE = 100e-6
"""Seconds that one sample lasts at the least: short functions are called several times for it."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the lower quartile of the rounds."""

    median: float
    quartile: float
    rounds: int


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    budget: float,
    rounds: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Each function's time per call. All are called in turn (A B C A B C ...) after two calls
    each to warm up, for `budget` seconds in all, or as many `rounds` as given; at least 5 rounds
    (3 where one takes over a second). The collector of garbage is off meanwhile."""
    repeats = {}
    spent = 0.0
    for name, f in functions.items():
        f()
        start = time.perf_counter()
        f()
        one = time.perf_counter() - start
        repeats[name] = max(1, round(SAMPLE / max(one, 1e-7)))
        spent += one * repeats[name]
    least = 3 if spent > 1.0 else 5
    wanted = rounds or max(least, min(1000, int(budget / max(spent, 1e-6))))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(wanted):
            for name, f in functions.items():
                count = range(repeats[name])
                start = clock()
                for _ in count:
                    f()
                taken[name].append((clock() - start) / repeats[name])
    finally:
        if enabled:
            gc.enable()
    return {name: _timing(times) for name, times in taken.items()}


def _timing(times: list[float]) -> Timing:
    ordered = sorted(times)
    return Timing(statistics.median(ordered), ordered[len(ordered) // 4], len(ordered))
