"""Making a failing derivation small: which step it is, and which others it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kir.errors import KirError
from kir.ir import Kernel, Step
from kir.staged import Staged, stage

Fails = Callable[[Staged], bool]
SECONDS = 20.0
"""Spent at most on leaving out steps."""


@dataclass(frozen=True)
class Culprit:
    """The first step, counted from 1, after which a kernel is wrong; and the fewest steps found
    under which it is."""

    number: int
    step: Step
    steps: tuple[Step, ...]


def shrink(spec: Kernel, steps: Sequence[Step], fails: Fails) -> Culprit:
    """Drop the steps after the first failing stage, then any other that is not needed: a later
    step that is illegal without an earlier one keeps it."""
    whole = stage(spec, steps)
    number = len(steps)
    for n in range(1, len(steps) + 1):
        if _fails(Staged(spec, whole.stages[:n]), fails):
            number = n
            break
    kept = list(steps[:number])
    culprit = kept[-1]
    deadline = time.monotonic() + SECONDS
    again = True
    while again:
        again = False
        for n in reversed(range(len(kept))):
            fewer = kept[:n] + kept[n + 1 :]
            if time.monotonic() < deadline and _wrong(spec, fewer, fails):
                kept, again = fewer, True
    return Culprit(number, culprit, tuple(kept))


def _wrong(spec: Kernel, steps: Sequence[Step], fails: Fails) -> bool:
    """Whether fewer steps are all legal, and the result is wrong still."""
    try:
        made = stage(spec, steps)
    except KirError:
        return False
    return _fails(made, fails)


def _fails(made: Staged, fails: Fails) -> bool:
    """A stage that cannot be run the same way shows nothing."""
    try:
        return fails(made)
    except KirError:
        return False
