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
"""A function that takes this many times the budget is called once, and that is its sample."""


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
    budget is called no second time. One with a method `seconds`, which takes a number
    of calls, is timed by that.
    """
    repeats: dict[str, int] = {}
    taken: dict[str, list[float]] = {name: [] for name in functions}
    spent = 0.0
    for name, f in functions.items():
        one = _sample(f, 1, clock)
        if one > SLOW * budget:
            taken[name].append(one)
            continue
        one = min(one, _sample(f, 1, clock))
        repeats[name] = max(1, round(SAMPLE / max(one, 1e-7)))
        spent += one * repeats[name]
    least = 3 if spent > 2 * budget else 5
    wanted = rounds or max(least, min(1000, int(budget / max(spent, 1e-6))))
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(wanted):
            for name, count in repeats.items():
                taken[name].append(_sample(functions[name], count, clock) / count)
    finally:
        if enabled:
            gc.enable()
    return {name: _timing(times) for name, times in taken.items()}


def _sample(f: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Seconds of so many calls. What runs in another process says itself how long it took."""
    elsewhere: Callable[[int], float] | None = getattr(f, "seconds", None)
    if elsewhere is not None:
        return elsewhere(calls)
    count = range(calls)
    start = clock()
    for _ in count:
        f()
    return clock() - start


def _timing(times: list[float]) -> Timing:
    ordered = sorted(times)
    return Timing(statistics.median(ordered), ordered[len(ordered) // 4], len(ordered))
