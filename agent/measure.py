"""Timing of candidates: serialised on the machine, in turns with a yardstick, and no longer than
it takes to see that one is slow."""

from __future__ import annotations

import contextlib
import fcntl
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Run = Callable[[], object]
Clock = Callable[[], float]

WARM_UPS = 2
HOPELESS = 5.0
"""A candidate this many times slower than the yardstick in its first run is not timed further."""
LOSING = 0.6
"""One whose ratio stays below this share of the incumbent's is timed for `EARLY` rounds only."""
EARLY = 4
MIN_SAMPLE_SECONDS = 2e-4
"""Calls are timed in batches at least this long, to stay above the clock's noise."""


def lock_path() -> Path:
    """The file whose lock a process holds while it measures, one for each user of a machine."""
    return Path(tempfile.gettempdir()) / f"kir-measure-{os.getuid()}.lock"


@contextlib.contextmanager
def alone(path: str | None) -> Iterator[None]:
    """Hold the lock of a file, made beforehand; it is released when the process ends, however."""
    if path is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def alternate(
    candidate: Run,
    yardstick: Run,
    repeats: int,
    incumbent: float = 0.0,
    clock: Clock = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds per call of each, measured in turn (A B A B) after a warm-up, `repeats` times; less
    where the candidate is far from the ratio (yardstick over candidate) of the incumbent."""
    ours = theirs = 0.0
    for _ in range(WARM_UPS):
        ours, theirs = _timed(candidate, 1, clock), _timed(yardstick, 1, clock)
    if ours > HOPELESS * theirs:
        return [ours], [theirs]
    count = max(1, int(MIN_SAMPLE_SECONDS / max(min(ours, theirs), 1e-9)))
    samples: tuple[list[float], list[float]] = ([], [])
    for done in range(repeats):
        if done == EARLY and ratio(*samples) < LOSING * incumbent:
            break
        samples[0].append(_timed(candidate, count, clock))
        samples[1].append(_timed(yardstick, count, clock))
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of neighbouring ratios, theirs over ours: on a busy machine it is steadier than
    the ratio of the medians."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def halve(
    candidates: Sequence[Run], yardstick: Run, rounds: int, clock: Clock = time.perf_counter
) -> list[list[float]]:
    """Successive halving (Jamieson and Talwalkar, AISTATS 2016): for each candidate its ratios to
    the yardstick, of `rounds` rounds in turn, of as many again for the better half, and so on
    until one is left."""
    found: list[list[float]] = [[] for _ in candidates]
    for run in (*candidates, yardstick):
        once = _timed(run, 1, clock)
    count = max(1, int(MIN_SAMPLE_SECONDS / max(once, 1e-9)))
    left = list(range(len(candidates)))
    while left:
        for _ in range(rounds):
            for k in left:
                ours = _timed(candidates[k], count, clock)
                found[k].append(_timed(yardstick, count, clock) / ours)
        if len(left) == 1:
            break
        left.sort(key=lambda k: (-statistics.median(found[k]), k))
        left = left[: (len(left) + 1) // 2]
    return found


def _timed(run: Run, count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        run()
    return max(clock() - start, 1e-9) / count
