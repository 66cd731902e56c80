"""The proposer `rules`: legal moves near a variant, judged by the cost models. No network.

From one variant: a number of a step changed, a step dropped, a legal step or a macro added. From
two: the steps of one, then those of the other that still apply. Each time a variant is expanded a
few more of these are applied, and the best of what is known and untried comes first. Nothing but
the graph decides what that is, so that a resumed search proposes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random

from kir.agent import gpu_macros
from kir.agent.evaluate import MODELLED
from kir.agent.features import Analysis, analyse
from kir.agent.macros import macros
from kir.agent.model import EVERY, CostModel, Sample
from kir.agent.moves import legal_looking
from kir.agent.proposer import Ask, Derivation, Proposal
from kir.derivation import kernel_hash
from kir.errors import KirError
from kir.ir import Kernel, Step, StepArg
from kir.pipeline import LOOPS, is_scheduled, schedule
from kir.rewrites import apply_step

WINDOW = 12
"""Candidates applied and judged each time a variant is expanded."""
CURIOUS = 5
"""Every so often the order is by chance, or a model that is wrong would never learn."""
SPLICES = 24


@dataclass(frozen=True)
class _Tried:
    """A candidate that applies, with what the models need."""

    steps: Derivation
    ir_hash: str
    features: Mapping[str, float]
    origin: str


@dataclass
class _Pool:
    """What may be proposed from certain parents: untried makers, and what they gave."""

    makers: list[tuple[str, Callable[[], Derivation]]]
    tried: list[_Tried] = field(default_factory=list)
    at: int = 0


class Rules:
    """`known` is what earlier searches measured: the model begins with that. `expressible` raises
    a KirError for scheduled IR that the target has no form for: such is not proposed."""

    name = "rules"

    def __init__(
        self,
        known: list[Sample] | None = None,
        *,
        learn: bool = True,
        target: str = "cpu",
        expressible: Callable[[Kernel], object] | None = None,
        analyse: Callable[[Kernel], Analysis] = analyse,
    ) -> None:
        self._known = known or []
        self._target, self._expressible, self._analyse = target, expressible, analyse
        self._learn = learn
        self._pools: dict[tuple[int, ...], _Pool] = {}
        self._model = CostModel()
        self._fitted = -1

    def spent(self) -> Mapping[str, float]:
        return {}

    def propose(self, ask: Ask) -> Iterator[Proposal]:
        key = tuple(p.id for p in ask.parents)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(self._makers(ask))
        self._fit(ask)
        random = Random(f"{ask.seed}:{len(ask.graph.variants)}:{ask.parents[0].ir_hash}")
        children = len(ask.graph.children.get(key[0], ()))
        while True:
            self._extend(pool, ask, WINDOW * (children + 1))
            fresh = [t for t in pool.tried if t.ir_hash not in ask.graph.seen]
            if fresh or pool.at >= len(pool.makers):
                break
            children += 1
        costs = self._model.predict_all([t.features for t in fresh])
        ranked = [t for _, t in sorted(zip(costs, fresh, strict=True), key=lambda pair: pair[0])]
        if len(ask.graph.variants) % CURIOUS == CURIOUS - 1:
            random.shuffle(ranked)
        kind = "crossover" if len(ask.parents) > 1 else "step"
        for t in ranked:
            yield Proposal(t.steps, kind, {"move": t.origin, "samples": self._model.samples})

    def _fit(self, ask: Ask) -> None:
        """Fit the model to the first so many variants, a round number of them."""
        good = list(ask.graph.good())
        count = len(good) // EVERY * EVERY
        if count != self._fitted and self._learn:
            measured = [(v.features, v.seconds) for v in good[:count] if v.seconds]
            self._model = CostModel([*self._known, *measured])
            self._fitted = count

    def _extend(self, pool: _Pool, ask: Ask, wanted: int) -> None:
        """Apply makers until so many were."""
        while pool.at < min(wanted, len(pool.makers)):
            origin, make = pool.makers[pool.at]
            pool.at += 1
            try:
                steps = make()
                kernel = schedule(ask.spec, steps)
                if self._expressible is not None:
                    self._expressible(kernel)
            except KirError:
                continue
            if not is_scheduled(kernel):  # a step was dropped that all others need
                continue
            tried = _Tried(steps, kernel_hash(kernel), self._analyse(kernel).features, origin)
            if all(t.ir_hash != tried.ir_hash for t in pool.tried):
                pool.tried.append(tried)

    def _makers(self, ask: Ask) -> list[tuple[str, Callable[[], Derivation]]]:
        """All candidates in the order in which they are tried: each kind shuffled, then mixed."""
        random = Random(f"{ask.seed}:{':'.join(p.ir_hash for p in ask.parents)}")
        first = ask.parents[0]
        if len(ask.parents) > 1:
            return _crossed(ask.spec, first.steps, ask.parents[1].steps, random)
        kernel = schedule(ask.spec, first.steps)
        moves = legal_looking(kernel, self._target)
        doubling = self._target in MODELLED
        kinds = [
            [(name, _after(first.steps, made)) for name, made in recipes(kernel, self._target)],
            [("change", _given(d)) for d in changed(first.steps, doubling)],
            [(s.rewrite, _then(kernel, first.steps, s)) for s in moves],
            [("drop", _given(d)) for d in _shortened(first.steps)],
        ]
        for kind in kinds:
            random.shuffle(kind)
        mixed: list[tuple[str, Callable[[], Derivation]]] = []
        while any(kinds):
            for kind in kinds:
                mixed += kind[-3:]
                del kind[-3:]
        return mixed


DRAFTS = 8


def recipes(kernel: Kernel, target: str) -> Iterator[tuple[str, Callable[[], Derivation]]]:
    """The macros for a target."""
    return gpu_macros.macros(kernel) if target in MODELLED else macros(kernel)


def drafts(
    spec: Kernel,
    count: int = DRAFTS,
    analyse: Callable[[Kernel], Analysis] = analyse,
    target: str = "cpu",
) -> list[Derivation]:
    """Independent starts from canonical loops: the macros that the analytic model likes best, no
    two of the same sort of result."""
    start: Derivation = () if is_scheduled(spec) else LOOPS
    found: list[tuple[float, Derivation, str]] = []
    kernel = schedule(spec, start)
    for name, made in recipes(kernel, target):
        try:
            steps = (*start, *made())
            found.append(
                (
                    analyse(schedule(spec, steps)).total,
                    steps,
                    name.split("staged")[0].split("warps")[0],
                )
            )
        except KirError:
            continue
    found.sort(key=lambda f: f[0])
    return list({sort: steps for _, steps, sort in reversed(found)}.values())[::-1][:count]


def _given(steps: Derivation) -> Callable[[], Derivation]:
    return lambda: steps


def _after(steps: Derivation, made: Callable[[], Derivation]) -> Callable[[], Derivation]:
    return lambda: (*steps, *made())


def _then(kernel: Kernel, steps: Derivation, step: Step) -> Callable[[], Derivation]:
    """With a step added: applied to the kernel at hand first, where that is refused quickly."""

    def make() -> Derivation:
        apply_step(kernel, step)
        return (*steps, step)

    return make


def changed(steps: Derivation, doubling: bool = False) -> Iterator[Derivation]:
    """One integer of one step doubled, halved, four times as much or little, or (unless `doubling`
    alone makes sense) one more or less."""
    for at, step in enumerate(steps):
        for k, arg in enumerate(step.args):
            for value in _near(arg, doubling and "num_stages" not in step.args):
                new = replace(step, args=(*step.args[:k], value, *step.args[k + 1 :]))
                yield (*steps[:at], new, *steps[at + 1 :])
        for k, (name, arg) in enumerate(step.options):
            for value in _near(arg, doubling):
                options = (*step.options[:k], (name, value), *step.options[k + 1 :])
                yield (*steps[:at], replace(step, options=options), *steps[at + 1 :])


def _near(arg: StepArg, doubling: bool = False) -> Iterator[int]:
    if isinstance(arg, int) and arg > 0:
        near: tuple[int, ...] = (arg * 2, arg // 2, arg * 4, arg // 4)
        near = near if doubling else (*near, arg + 1, arg - 1)
        yield from dict.fromkeys(value for value in near if value >= 1 and value != arg)


def _shortened(steps: Derivation) -> Iterator[Derivation]:
    for at in range(len(steps)):
        yield (*steps[:at], *steps[at + 1 :])


def _crossed(
    spec: Kernel, a: Derivation, b: Derivation, random: Random
) -> list[tuple[str, Callable[[], Derivation]]]:
    """The first steps of `a`, then those of `b` from some place on that apply."""
    cuts = [(i, j) for i in range(1, len(a) + 1) for j in range(1, len(b) + 1)]
    random.shuffle(cuts)

    def splice(i: int, j: int) -> Derivation:
        kernel = schedule(spec, a[:i])
        steps = a[:i]
        for step in b[j:]:
            try:
                kernel = apply_step(kernel, step)
            except KirError:
                continue
            steps = (*steps, step)
        return steps

    return [("crossover", lambda i=i, j=j: splice(i, j)) for i, j in cuts[:SPLICES]]  # type: ignore[misc]
