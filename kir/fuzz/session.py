"""One kernel of a campaign: made from its seed, derived several ways, each way judged."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kir.check import check_kernel
from kir.errors import KirError, MissingHardwareError, RewriteError, UnsupportedError
from kir.fuzz.cases import CRASHES, INTERPRETER, Case, Failure, crash
from kir.fuzz.coverage import Coverage
from kir.fuzz.derivations import (
    HUGE,
    Crashed,
    Deriver,
    Tally,
    Variant,
    carefully,
    extended,
    is_spec,
    show,
    size_of,
    unrolled,
    variants,
)
from kir.fuzz.expressions import Dice
from kir.fuzz.judge import (
    POINTS,
    Prepared,
    judge_check,
    judge_replay,
    judge_ring,
    judge_spec,
    judge_target,
    judge_text,
    judge_value,
    load,
    prepare,
)
from kir.fuzz.kernels import generate
from kir.inputs import index_bounds
from kir.ir import Kernel, Step
from kir.pipeline import LOOPS, Target
from kir.rewrites import REWRITES
from kir.specialise import evaluate, specialise
from kir.testing import Example

LIKELY_SIZES = [(1, 10), (2, 15), (3, 20), (5, 20), (7, 10), (4, 8), (8, 5), (9, 5), (6, 3), (0, 4)]
"""Of dims: primes, off by one of tiles, and nothing at all."""
PLAIN = ("integers", "tame")
PROFILES = (*PLAIN, "shifted", "special", "wide")
"""Of inputs; the plain ones have neither infinities nor NaNs, which laws of the reals forget."""
CHECKED, READ, REPLAYED = 30.0, 15.0, 5.0
"""Percent of the pairs whose result is checked, printed and parsed, derived anew."""
COMPILED, UNROLLED = 160, 4000
"""Nodes of the greatest kernel that is compiled, as written and unrolled: LLVM takes its time over
others."""


@dataclass
class Outcome:
    """What one kernel gave; plain data but for the failures."""

    counts: Counter[str] = field(default_factory=Counter)
    coverage: Coverage = field(default_factory=Coverage)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Case, Failure]] = field(default_factory=list)


def draw_dims(kernel: Kernel, dice: Dice) -> dict[str, int] | None:
    """Values for the dims that constraints, extents and indices allow; None where none was hit."""
    extents = [e for p in kernel.params for e in p.shape]
    shapes = {p.name: p.shape for p in kernel.inputs}
    indexed = index_bounds(kernel)
    for _ in range(30):
        dims = {d.name: dice.weighted(LIKELY_SIZES) for d in kernel.dims}
        total = 1
        for n in dims.values():
            total *= max(n, 1)
        if total > POINTS or not all(evaluate(c, dims) for c in kernel.constraints):
            continue
        if any(evaluate(e, dims) < 0 for e in extents):
            continue
        full = (n for n, b in indexed.items() if all(evaluate(e, dims) for e in shapes[n]))
        if all(evaluate(e, dims) >= 1 for n in full for e in indexed[n]):
            return dims
    return None


def draw_examples(base: Kernel, dice: Dice, count: int) -> list[Prepared]:
    """Examples ready for use; one more is tried for each that turns out to be no valid input."""
    found: list[Prepared] = []
    for n in range(2 * count):
        dims = draw_dims(base, dice)
        if dims is None:
            break
        profile = PROFILES[n % 2] if n < 2 or dice.chance(30) else dice.pick(PROFILES)
        made = prepare(base, Example(tuple(dims.items()), profile, dice.below(1 << 16)))
        if made is not None:
            found.append(made)
        if len(found) == count:
            break
    return found


@dataclass
class Session:
    """Judges kernel after kernel for one target (the interpreter, or a backend)."""

    seed: int
    target: str = INTERPRETER
    derivations: int = 8
    examples: int = 3
    names: Sequence[str] | None = None

    def kernel(self, number: int) -> Outcome:
        """All derivations of the kernel of this number."""
        outcome = Outcome()
        name = f"{self.seed}/{number}"
        dice = Dice(random.Random(f"derivations {self.target} {name}"))
        kernel = generate(name)
        base = specialise(kernel)
        try:
            check_kernel(base)
        except KirError:
            outcome.counts["rejected"] += 1
            return outcome
        case = Case(kernel, (), target=self.target)
        try:
            self.judge_kernel(case, base, dice, outcome)
        except Crashed as error:
            outcome.failures.append((replace(case, steps=error.steps), error.failure))
        except CRASHES as error:
            outcome.failures.append((case, crash(error)))
        return outcome

    def judge_kernel(self, case: Case, base: Kernel, dice: Dice, outcome: Outcome) -> None:
        outcome.counts["kernels"] += 1
        outcome.coverage.see(case.kernel)
        found = judge_text(case.kernel)
        if found is not None:
            outcome.failures.append((case, found))
            return
        prepared = draw_examples(base, dice, self.examples)
        if not prepared or all(p.bounded_share() == 0 for p in prepared):
            outcome.counts["vacuous"] += 1
            return
        for p in prepared:
            failed = judge_spec(p)
            if failed is not None:
                outcome.failures.append((with_example(case, p), failed))
                return
        tally = Tally()
        huge = HUGE if self.target == INTERPRETER else COMPILED
        made = variants(base, dice, self.derivations, tally, self.names, huge)
        try:
            for variant in made:
                mine = replace(case, steps=variant.steps)
                try:
                    self.judge_variant(mine, base, variant, prepared, dice, outcome)
                except MemoryError:  # a tile staged whole, say: no fault
                    outcome.counts["too large"] += 1
                    outcome.counts["pairs"] -= 1
                except (*CRASHES, KirError) as error:
                    outcome.failures.append((mine, crash(error)))
        finally:
            outcome.coverage.rewrites.update(tally.applied)
            outcome.refused.update(tally.refused)
        outcome.counts["refused"] += sum(tally.refused.values())

    def judge_variant(
        self,
        mine: Case,
        base: Kernel,
        variant: Variant,
        prepared: Sequence[Prepared],
        dice: Dice,
        outcome: Outcome,
    ) -> None:
        outcome.counts["pairs"] += 1
        outcome.counts["steps"] += len(variant.steps)
        for broken in self.static(base, variant, prepared, dice):
            outcome.failures.append((replace(mine, example=broken.example), broken))
            return
        if self.target != INTERPRETER:
            self.on_target(mine, variant, prepared, outcome)
            return
        found = self.interpreted(variant, prepared, outcome.counts["pairs"])
        if found is not None:
            outcome.failures.append((with_example(mine, found[0]), found[1]))

    def interpreted(
        self, variant: Variant, prepared: Sequence[Prepared], turn: int
    ) -> tuple[Prepared, Failure] | None:
        """One example in the dtypes as written, another in the ring; which ones goes by turns."""
        p = prepared[turn % len(prepared)]
        found = judge_value(variant, p)
        if found is not None:
            return p, found
        plain = [q for q in prepared if q.example.profile in PLAIN]
        if plain:
            q = plain[(turn + 1) % len(plain)]
            found = judge_ring(variant, q)
            if found is not None:
                return q, found
        return None

    def static(
        self, base: Kernel, variant: Variant, prepared: Sequence[Prepared], dice: Dice
    ) -> Iterator[Failure]:
        """What needs no run, for a part of the pairs: the check, the text, a second replay."""
        found = judge_check(base, variant.kernel, prepared) if dice.chance(CHECKED) else None
        if found is None and dice.chance(READ):
            found = judge_text(variant.kernel)
        if found is None and dice.chance(REPLAYED):
            found = judge_replay(base, variant.steps, variant.kernel)
        if found is not None:
            yield found

    def on_target(
        self, case: Case, variant: Variant, prepared: Sequence[Prepared], outcome: Outcome
    ) -> None:
        """Compile and run; what a backend does not express counts as unsupported."""
        if is_spec(variant.kernel):
            variant = extended(variant, LOOPS[0])
            case = replace(case, steps=variant.steps)
        if size_of(variant.kernel) > COMPILED or unrolled(variant.kernel) > UNROLLED:
            outcome.counts["too large"] += 1
            outcome.counts["pairs"] -= 1
            return
        try:
            program = load(variant.kernel, Target(self.target))
        except (UnsupportedError, MissingHardwareError):
            outcome.counts["unsupported"] += 1
            outcome.counts["pairs"] -= 1
            return
        for p in prepared:
            found = judge_target(program, variant, p, self.target)
            if found is not None:
                outcome.failures.append((with_example(case, p), found))
                return


def with_example(case: Case, prepared: Prepared) -> Case:
    return Case(case.kernel, case.steps, prepared.example, case.target)


# --- single cases --------------------------------------------------------------------------------


def judge_case(case: Case) -> Failure | None:
    """Judge one case by every property; None where all hold. Raises KirError where it is no
    well-formed case: the kernel does not check, a step is refused, the example does not fit."""
    base = specialise(case.kernel)
    check_kernel(base)
    try:
        found = judge_text(case.kernel)
        if found is None:
            found = _judge_steps(case, base)
    except RewriteError:
        raise
    except MemoryError:
        return None
    except (*CRASHES, KirError) as error:
        found = crash(error)
    if found is None:
        return None
    return replace(found, step=case.steps[-1].rewrite if case.steps else "")


def _judge_steps(case: Case, base: Kernel) -> Failure | None:
    prepared = None
    if case.example is not None:
        prepared = prepare(base, case.example)
        if prepared is None:
            return None
        found = judge_spec(prepared)
        if found is not None:
            return found
    try:
        variant = replayed(base, case.steps)
        list_moves(variant.kernel)
    except Crashed as error:
        return error.failure
    examples = [prepared] if prepared is not None else []
    found = judge_check(base, variant.kernel, examples) or judge_text(variant.kernel)
    found = found or judge_replay(base, variant.steps, variant.kernel)
    if found is not None or prepared is None:
        return found
    if case.target != INTERPRETER:
        if is_spec(variant.kernel):
            variant = extended(variant, LOOPS[0])
        program = load(variant.kernel, Target(case.target))
        return judge_target(program, variant, prepared, case.target)
    found = judge_value(variant, prepared)
    plain = prepared.example.profile in PLAIN
    if found is None and plain:
        found = judge_ring(variant, prepared)
    return found


def replayed(base: Kernel, steps: Sequence[Step]) -> Variant:
    """The variant that these steps make; RewriteError where one is refused."""
    variant = Variant((), base)
    for step in steps:
        try:
            variant = carefully(variant, step)
        except RewriteError as refusal:
            show(variant, step, refusal)
            raise
    return variant


def list_moves(kernel: Kernel) -> None:
    """List what every rewrite offers; Crashed where that is no list."""
    deriver = Deriver(Dice(random.Random(0)), (), Tally())
    for name in REWRITES:
        deriver.candidates(name, Variant((), kernel))


def located(case: Case) -> tuple[Case, Failure | None]:
    """The case cut short after the first step with which it fails, and how it does there."""
    for n in range(len(case.steps) + 1):
        cut = replace(case, steps=case.steps[:n])
        try:
            found = judge_case(cut)
        except KirError:
            continue
        if found is not None:
            return cut, found
    return case, None
