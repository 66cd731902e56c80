"""The operator: which derivations to try from a variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Protocol

from kir.agent.moves import legal_looking
from kir.errors import KirError, UsageError
from kir.ir import Kernel, Step, StepArg
from kir.pipeline import schedule

Derivation = tuple[Step, ...]


class Proposer(Protocol):
    """Gives derivations near a variant's. Each must apply (the search replays it) but need not be
    right or fast: that is found out. Deterministic in its arguments."""

    name: str

    def propose(self, spec: Kernel, steps: Derivation, random: Random) -> Iterator[Derivation]:
        """Lazily, best guesses first; `spec` is specialised to the dims that are tuned for."""


class Rules:
    """Local moves: change one integer of one step, drop a step, insert a legal step at the end.

    Only what replays is given. Changes of tile sizes come first, since they matter most.
    """

    name = "rules"

    def propose(self, spec: Kernel, steps: Derivation, random: Random) -> Iterator[Derivation]:
        groups = [list(_changed(steps)), list(_extended(spec, steps)), list(_shortened(steps))]
        for group in groups:
            random.shuffle(group)
            for candidate in group:
                if _applies(spec, candidate):
                    yield candidate


def _applies(spec: Kernel, steps: Derivation) -> bool:
    try:
        schedule(spec, steps)
    except KirError:
        return False
    return True


def _changed(steps: Derivation) -> Iterator[Derivation]:
    """One integer of one step doubled, halved, or four times as much or little."""
    for at, step in enumerate(steps):
        for k, arg in enumerate(step.args):
            for value in _near(arg):
                new = replace(step, args=(*step.args[:k], value, *step.args[k + 1 :]))
                yield (*steps[:at], new, *steps[at + 1 :])
        for k, (name, arg) in enumerate(step.options):
            for value in _near(arg):
                options = (*step.options[:k], (name, value), *step.options[k + 1 :])
                yield (*steps[:at], replace(step, options=options), *steps[at + 1 :])


def _near(arg: StepArg) -> Iterator[int]:
    if isinstance(arg, int) and arg > 0:
        yield from (value for value in (arg * 2, arg // 2, arg * 4, arg // 4) if value >= 1)


def _extended(spec: Kernel, steps: Derivation) -> Iterator[Derivation]:
    return ((*steps, step) for step in legal_looking(schedule(spec, steps)))


def _shortened(steps: Derivation) -> Iterator[Derivation]:
    for at in range(len(steps)):
        yield (*steps[:at], *steps[at + 1 :])


PROPOSERS: dict[str, type[Proposer]] = {"rules": Rules}


def make_proposer(name: str) -> Proposer:
    if name not in PROPOSERS:
        raise UsageError(f"unknown proposer `{name}`", hint=f"there are: {', '.join(PROPOSERS)}")
    return PROPOSERS[name]()
