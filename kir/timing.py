"""Timing several functions against one another, round by round in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SAMPLE = 100e-6
"""Seconds that one sample lasts at the least: short functions are called several times for it."""
SLOW = 20
"""A function that takes this many times the budget of a case is called no second time to warm up,
and in one round of the least number alone."""


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
    """Each function's time per call.

    After two calls each to warm up, all are called in turn (A B C A B C ...), for `budget` seconds
    in all or as many `rounds` as given, but at least in 5 rounds (3 where a round takes over twice
    the budget). The collector of garbage is off meanwhile. A function that is very slow beside the
    budget takes part in the first round alone.
    """
    repeats: dict[str, int] = {}
    slow: set[str] = set()
    spent = 0.0
    for name, f in functions.items():
        one = _seconds(f)
        if one > SLOW * budget:
            slow.add(name)
            repeats[name] = 1
            continue
        one = min(one, _seconds(f))
        repeats[name] = max(1, round(SAMPLE / max(one, 1e-7)))
        spent += one * repeats[name]
    least = 3 if spent > 2 * budget else 5
    wanted = rounds or max(least, min(1000, int(budget / max(spent, 1e-6))))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(wanted):
            for name, f in functions.items():
                if number and name in slow:
                    continue
                count = range(repeats[name])
                start = clock()
                for _ in count:
                    f()
                taken[name].append((clock() - start) / repeats[name])
    finally:
        if enabled:
            gc.enable()
    return {name: _timing(times) for name, times in taken.items()}


def _seconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def _timing(times: list[float]) -> Timing:
    ordered = sorted(times)
    return Timing(statistics.median(ordered), ordered[len(ordered) // 4], len(ordered))
