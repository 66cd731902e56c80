"""Every rewrite, over generated kernels: wherever it applies, the meaning stays.

The kernel is led to where the rewrite may apply by random steps; then one of its candidates is
taken, with any values in its domains. What comes out passes the checker, parses back from its text,
equals the spec bit for bit in the ring and lies within the oracle's bound.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kir.errors import RewriteError
from kir.fuzz.derivations import Deriver, Tally, Variant, extended, instantiate, size_of
from kir.fuzz.expressions import Dice
from kir.fuzz.judge import Prepared, judge_check, judge_ring, judge_text, judge_value
from kir.fuzz.kernels import generate
from kir.fuzz.session import PLAIN, draw_examples
from kir.fuzz.templates import TEMPLATES, template
from kir.ir import Kernel, Step
from kir.rewrites import REWRITES, make_rewrite
from kir.specialise import specialise
from kir.syntax import format_kernel, format_step, load, parse

WANTED = 6
"""Applications that are judged."""
KERNELS = 90
"""Kernels that are tried at most."""
FEW = 3
"""Applications there must be at least."""
SPEC = ("factor", "distribute", "cse", "join", "regroup", "inline", "recompute", "outline", "hoist")
"""Rewrites of definitions: seldom after `loops`."""
AHEAD = {
    "online": ("loops", "merge", "merge"),
    "unmask": ("loops", "split"),
    "contract": ("loops", "merge"),
    "unswitch": ("loops", "split"),
    "swizzle": ("loops", "bind", "bind", "bind"),
}
"""Steps that make a place for a rewrite which random ones seldom make."""
CASES = Path(__file__).parent / "rewrites"


def prepared_by_cases(name: str) -> list[tuple[Kernel, tuple[Step, ...]]]:
    """The kernels of the rewrite's own cases, with the steps before its first application."""
    found = []
    for path in sorted(CASES.glob("*.kir")):
        module = parse(load(path))
        (kernel,) = module.kernels().values()
        for schedule in module.schedules().values():
            steps = schedule.steps
            if schedule.name.startswith("good") and name in [s.rewrite for s in steps]:
                at = [s.rewrite for s in steps].index(name)
                found.append((kernel, steps[:at]))
    return found


def starts(name: str) -> Iterator[tuple[Kernel, Variant, Dice]]:
    """Kernels led to where the rewrite may apply: generated ones, kernels of the kinds that
    rewrites are made for, and those of its cases."""
    cases = prepared_by_cases(name)
    for n in range(KERNELS):
        dice = Dice(random.Random(f"property {name} {n}"))
        deriver = Deriver(dice, tuple(REWRITES), Tally())
        if n % 3 == 2 and cases:
            kernel, steps = dice.pick(cases)
            base = specialise(kernel)
            variant = Variant((), base)
            for step in steps:
                variant = extended(variant, step)
            yield base, deriver.walk(variant, dice.below(2)), dice
            continue
        if n % 3 == 1:
            key = dice.pick(tuple(TEMPLATES))
            kernel = template(key, dice.pick(("f32", "f64", "bf16")), "i32")
        else:
            kernel = generate(f"property {name} {n}")
        base = specialise(kernel)
        variant = Variant((), base)
        if dice.chance(70) and name not in SPEC:
            for word in AHEAD.get(name, ("loops",)):
                variant = deriver.walk_of((word,), variant, 1)
        yield base, deriver.walk(variant, dice.below(3)), dice


def applications(name: str) -> Iterator[tuple[Kernel, Variant, Variant, Dice]]:
    """Places where the rewrite applies: the spec, the variant before and the one after."""
    for base, variant, dice in starts(name):
        deriver = Deriver(dice, (name,), Tally())
        moves = deriver.candidates(name, variant)
        for move in dice.sample(moves, 12):
            if size_of(variant.kernel) > 400:
                break
            step = instantiate(move, dice)
            try:
                after = extended(variant, step)
            except RewriteError as refusal:
                assert refusal.render()
                continue
            yield base, variant, after, dice
            break


@pytest.mark.parametrize("name", REWRITES)
def test_the_meaning_stays_wherever_it_applies(name: str) -> None:
    applied = 0
    for base, before, after, dice in applications(name):
        prepared = draw_examples(base, dice, 2)
        for p in prepared:
            judge(name, base, before, after, p)
        applied += bool(prepared)
        if applied == WANTED:
            break
    assert applied >= FEW, f"{name} applied {applied} times"


def judge(name: str, base: Kernel, before: Variant, after: Variant, p: Prepared) -> None:
    found = judge_check(base, after.kernel, [p]) or judge_text(after.kernel)
    found = found or judge_value(after, p)
    if found is None and p.example.profile in PLAIN:
        found = judge_ring(after, p)
    assert found is None, f"{found.kind}: {found.message}\n{format_kernel(base)}\n" + "\n".join(
        format_step(s) for s in after.steps
    )


@pytest.mark.parametrize("name", REWRITES)
def test_legality_does_not_depend_on_open_parameters(name: str) -> None:
    """A move is legal for all values in its domains or for none."""
    tried = 0
    for base, variant, _, dice in applications(name):
        del base
        moves = [m for m in REWRITES[name].candidates(variant.kernel) if m.domains]
        for move in dice.sample(moves, 3):
            legal = {format_step(s): is_legal(variant.kernel, s) for s in
                     [move.step(), *(instantiate(move, dice) for _ in range(4))]}  # fmt: skip
            assert len(set(legal.values())) == 1, f"{legal}\n{format_kernel(variant.kernel)}"
            tried += 1
        if tried >= 6:
            break


def is_legal(kernel: Kernel, step: Step) -> bool:
    try:
        make_rewrite(step).edit(kernel)
    except RewriteError:
        return False
    return True
