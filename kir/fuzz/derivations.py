"""Random derivations: legal steps found by trying, not by listing all that is legal.

A step is drawn as a rewrite, then one of its `candidates`, then values for the parameters left
open; where it is refused another is drawn. Derivations of one kernel share beginnings, so that most
of them cost a few steps each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from kir.errors import KirError, RewriteError, ScheduleError
from kir.fuzz.cases import CRASHES, Failure, crash
from kir.fuzz.expressions import Dice
from kir.ir import Const, Define, Kernel, Loop, Node, Reduce, Step, StepArg, children, walk
from kir.rewrites import EFFECTS, REWRITES, Effect, canonical, make_rewrite
from kir.rewrites.base import Domain, Move, Whole

LISTED = 300
"""Candidates looked at for one rewrite."""
TRIES = 5
"""Draws for each step wanted."""
SHOWN = 2.0
"""Percent of the refusals that are rendered."""
HUGE = 280
"""Nodes of the greatest result that is judged; from half of it on a kernel is not rewritten
further, for some rewrites copy code."""
OFTEN = {"split": 3.0, "reorder": 2.0, "bind": 2.0, "fission": 2.0, "fuse": 2.0, "merge": 2.0,
         "stage": 2.0, "contract": 2.0, "inline": 2.0, "rfactor": 2.0, "online": 1.5,
         "factor": 2.0, "hint": 0.3, "outline": 0.7, "hoist": 0.7}  # fmt: skip
"""Weights of rewrites; 1 for those that are not named."""
Plan = Callable[[Kernel], Sequence[Step]]


@dataclass(frozen=True)
class Variant:
    """A derivation and its result."""

    steps: tuple[Step, ...]
    kernel: Kernel
    effect: Effect = "exact"
    """The strongest effect that a step had where it was applied."""


def extended(variant: Variant, step: Step) -> Variant:
    """The variant with one more step; RewriteError where it is refused."""
    before, rewrite = variant.kernel, make_rewrite(step)
    kernel = rewrite.apply(before)
    effect = max(variant.effect, rewrite.effect_on(before), key=EFFECTS.index)
    return Variant((*variant.steps, canonical(step)), kernel, effect)


class Crashed(Exception):
    """A rewrite failed in a way that is no refusal."""

    def __init__(self, steps: tuple[Step, ...], failure: Failure) -> None:
        super().__init__(failure.message)
        self.steps = steps
        self.failure = failure


def carefully(variant: Variant, step: Step) -> Variant:
    """`extended`; RewriteError where it is refused, Crashed for any other error."""
    try:
        return extended(variant, step)
    except RewriteError:
        raise
    except (*CRASHES, KirError) as error:
        raise Crashed((*variant.steps, step), crash(error)) from error


def show(variant: Variant, step: Step, refusal: RewriteError) -> None:
    """Render a refusal as a user sees it; Crashed where that fails."""
    try:
        refusal.render()
    except (*CRASHES, KirError) as error:
        what = f"the refusal cannot be shown: {refusal.message}\n"
        raise Crashed((*variant.steps, step), crash(error, what)) from error


@dataclass
class Tally:
    """How often each rewrite was applied, and drawn but refused."""

    applied: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


def value_in(domain: Domain, dice: Dice) -> StepArg:
    """A value of a domain, small ones preferred: sizes next to those of the tensors."""
    if not isinstance(domain, Whole):
        return dice.pick(domain.values)
    small = [t for t in domain.tries if t <= 8]
    if small and dice.chance(40):
        return dice.pick(small)
    if dice.chance(10):
        return dice.pick(domain.tries)
    room = 7 if domain.high is None else min(domain.high - domain.low + 1, 7)
    return domain.low + dice.below(max(room, 1))


def instantiate(move: Move, dice: Dice) -> Step:
    return move.step(**{name: value_in(domain, dice) for name, domain in move.domains})


def is_spec(kernel: Kernel) -> bool:
    return any(isinstance(n, Define | Reduce) for n in walk(kernel))


def size_of(kernel: Kernel) -> int:
    return sum(1 for _ in walk(kernel))


def unrolled(node: Node) -> int:
    """The nodes of a kernel with its unrolled loops written out."""
    extent = node.axis.extent if isinstance(node, Loop) and node.kind == "unroll" else None
    copies = int(extent.value) if isinstance(extent, Const) else 1
    return 1 + copies * sum(unrolled(c) for c in children(node))


@dataclass
class Deriver:
    """Draws derivations of one kernel. `names` are the rewrites it may use."""

    dice: Dice
    names: Sequence[str]
    tally: Tally
    huge: int = HUGE

    def attempt(self, variant: Variant, step: Step) -> Variant | None:
        """The variant with one more step, or None where it is refused."""
        try:
            found = carefully(variant, step)
        except RewriteError as refusal:
            self.tally.refused[step.rewrite] += 1
            if self.dice.chance(SHOWN):
                show(variant, step, refusal)
            return None
        self.tally.applied[step.rewrite] += 1
        return found

    def candidates(self, name: str, variant: Variant) -> list[Move]:
        """The moves that a rewrite offers; Crashed where listing them fails."""
        try:
            return list(islice(REWRITES[name].candidates(variant.kernel), LISTED))
        except (*CRASHES, KirError) as error:
            raise Crashed(variant.steps, crash(error, f"candidates of {name}: ")) from error

    def move_of(self, name: str, variant: Variant) -> Move | None:
        found = self.candidates(name, variant)
        return self.dice.pick(found) if found else None

    def one(self, variant: Variant) -> Variant | None:
        """One more step of any kind, or None where none of those drawn was legal."""
        weights = [(name, OFTEN.get(name, 1.0)) for name in self.names]
        for _ in range(TRIES):
            name = self.dice.weighted(weights)
            move = self.move_of(name, variant)
            if move is None:
                continue
            found = self.attempt(variant, instantiate(move, self.dice))
            if found is not None:
                return found
        return None

    def walk(self, variant: Variant, length: int) -> Variant:
        """`variant` with up to `length` more steps."""
        for _ in range(length):
            if size_of(variant.kernel) > self.huge // 2:
                break
            variant = self.one(variant) or variant
        return variant

    def prologue(self, variant: Variant) -> Variant:
        """What most schedules begin with: algebra on the spec, a definition or two inlined, and
        then loops."""
        variant = self.walk_of(SPEC_LEVEL, variant, self.dice.below(3))
        if self.dice.chance(85) and is_spec(variant.kernel):
            variant = self.attempt(variant, Step("loops")) or variant
        return variant

    def walk_of(self, names: Sequence[str], variant: Variant, length: int) -> Variant:
        """As `walk`, with some rewrites only."""
        some = [n for n in names if n in self.names]
        return (
            Deriver(self.dice, some, self.tally, self.huge).walk(variant, length)
            if some
            else variant
        )

    def recipe(self, variant: Variant) -> Variant:
        """Steps that belong together: split, reorder, bind, stage, contract, in this order."""
        for name in self.dice.pick(RECIPES):
            for _ in range(1 + self.dice.below(2)):
                variant = self.walk_of((name,), variant, 1)
        return variant

    def planned(self, variant: Variant, plan: Plan) -> Variant:
        """The derivation that a target's default schedule is."""
        for step in plan(variant.kernel):
            done = self.attempt(variant, step)
            if done is None:
                raise ScheduleError(f"a default schedule has a step that is refused: {step}")
            variant = done
        return variant


SPEC_LEVEL = ("inline", "outline", "hoist", "factor", "distribute", "cse", "online", "strength",
              "recompute", "split_kernel", "fold", "regroup", "narrow", "widen")  # fmt: skip
"""Rewrites that work on definitions."""
RECIPES: tuple[tuple[str, ...], ...] = (
    ("split", "split", "reorder", "bind", "bind", "stage"),
    ("split", "fission", "reorder", "contract"),
    ("merge", "contract", "set_space", "split"),
    ("fuse", "fuse", "contract", "split", "bind"),
    ("split", "rfactor", "reorder", "bind"),
    ("split", "stage", "bind", "unmask"),
    ("merge", "online", "contract", "split"),
    ("rfactor", "split", "unroll", "bind"),
)


def default_plans() -> dict[str, Plan]:
    """The default schedules that are made without a backend, by target."""
    from kir.plan.cpu import plan as cpu
    from kir.plan.cute import plan as cute
    from kir.plan.gpu import plan as gpu

    return {
        "cpu": cpu,
        "nvidia": lambda kernel: gpu(kernel, "sm_90"),
        "amd": lambda kernel: gpu(kernel, "gfx942"),
        "cute": cute,
    }


def variants(
    kernel: Kernel,
    dice: Dice,
    count: int,
    tally: Tally,
    names: Sequence[str] | None = None,
    huge: int = HUGE,
) -> Iterator[Variant]:
    """`count` derivations of a kernel, each of 1 to about 12 steps, whose results have at most
    `huge` nodes; fewer where steps are few."""
    deriver = Deriver(dice, tuple(names or REWRITES), tally, huge)
    spec = Variant((), kernel)
    found: list[Variant] = []
    seen: set[tuple[Step, ...]] = {()}
    for n in range(count * 2):
        if len(found) == count:
            return
        if n == 0 and dice.chance(30):
            plans = default_plans()
            variant = deriver.planned(spec, plans[dice.pick(tuple(plans))])
            variant = deriver.walk(variant, dice.below(3))
        elif found and dice.chance(65):
            variant = dice.pick(found)
            if len(variant.steps) < 12:
                more = 1 + dice.below(4)
                longer = dice.chance(25)
                variant = deriver.recipe(variant) if longer else deriver.walk(variant, more)
        else:
            variant = deriver.prologue(spec)
            if dice.chance(30):
                variant = deriver.recipe(variant)
            else:
                variant = deriver.walk(variant, dice.below(6))
        if variant.steps in seen or size_of(variant.kernel) > huge:
            continue
        seen.add(variant.steps)
        found.append(variant)
        yield variant
