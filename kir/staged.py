"""A kernel with the derivation that schedules it: stages, effects, and what is allowed of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from kir.derivation import approximations, replay
from kir.dtypes import DType
from kir.interpret import Bounded, Difference, Residues, difference, levels_of, oracle, run_ring
from kir.interpret.bounded import float_limits
from kir.interpret.rules import ROUNDINGS
from kir.ir import Buffer, Cast, Kernel, Op, Reduce, Step, Store, walk
from kir.rewrites import EFFECTS, Effect, make_rewrite
from kir.syntax import format_step

Array = np.ndarray[Any, Any]
OVERFLOWING = ("wide", "special")
"""Profiles of inputs on which laws of the reals say nothing of what overflows on one way."""


@dataclass
class Staged:
    """`spec`, its parameters bound, and each step with the kernel after it."""

    spec: Kernel
    stages: list[tuple[Step, Kernel]]

    @property
    def kernel(self) -> Kernel:
        return self.stages[-1][1] if self.stages else self.spec

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(s for s, _ in self.stages)

    def before(self, number: int) -> Kernel:
        """The kernel that a step, by its number from 0, was applied to."""
        return self.stages[number - 1][1] if number else self.spec

    def stated(self) -> list[str]:
        """Each step that approximates, with the bound it states."""
        found = []
        for n, (step, _) in enumerate(self.stages):
            if self.effects[n] == "approximates":
                bound = make_rewrite(step).bound() or "no bound is stated"
                found.append(f"step {n + 1}, `{format_step(step)}`: {bound}")
        return found

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """Of each step, where it was applied."""
        return tuple(
            make_rewrite(step).effect_on(self.before(n)) for n, (step, _) in enumerate(self.stages)
        )

    @property
    def effect(self) -> Effect:
        """The strongest of all steps."""
        return max(self.effects, key=EFFECTS.index, default="exact")

    @cached_property
    def narrows(self) -> bool:
        """Whether a step that does not approximate makes floats be computed, or summed up, in a
        narrower type than the narrowest before."""
        if all(_narrowest(k) >= _narrowest(self.spec) for _, k in self.stages):
            return False
        return any(
            _narrowest(after) < _narrowest(self.before(n))
            for n, (_, after) in enumerate(self.stages)
            if self.effects[n] != "approximates"
        )

    @cached_property
    def shrinks(self) -> bool:
        """Whether a step that approximates computes in, or stores, a float of less range than any
        before: no such step states a bound beyond it."""
        return any(
            effect == "approximates" and _greatest(after) < _greatest(self.before(n))
            for n, (effect, (_, after)) in enumerate(zip(self.effects, self.stages, strict=True))
        )

    @property
    def loosens(self) -> bool:
        """Whether more than the spec's own bound is allowed."""
        return self.effect != "exact" and not self.narrows

    @cached_property
    def levels(self) -> int:
        return levels_of(self.spec, self.kernel)

    def allowed(
        self,
        inputs: Mapping[str, Array],
        dims: Mapping[str, int],
        profile: str,
        fused: bool = False,
    ) -> dict[str, Bounded] | None:
        """What a derivation that is not exact may give beyond the spec's own bound: what the oracle
        allows the scheduled kernel, around the value that the spec says, and what steps that put
        something else in the place of ops state. None where the spec's bound is all there is: the
        derivation is exact, or a step that does not approximate narrows a type.

        Nothing is asked where the spec's value is not finite, nor, on inputs that may overflow
        (by their `profile`), where the scheduled kernel's is not: the laws of the reals do not hold
        there.
        With `fused`, products may go unrounded into sums.
        """
        if not self.loosens:
            return None
        approximates = fused or self.effect == "approximates"
        wanted = oracle(self.spec, inputs, _dims_of(self.spec, dims), approximates)
        here = _dims_of(self.kernel, dims)
        loose = self.effect == "approximates"
        beyond = self.overflows(profile)
        own = oracle(self.kernel, inputs, here, approximates, loose=loose, overflows=beyond)
        for kernel, errors in approximations(self.spec, self.stages):
            more = oracle(kernel, inputs, _dims_of(kernel, dims), contraction=True, errors=errors)
            wanted = {n: replace(w, bound=w.bound + more[n].bound) for n, w in wanted.items()}
        return {n: loosened(w, own[n], beyond) for n, w in wanted.items()}

    def overflows(self, profile: str) -> bool:
        """Whether steps may make numbers of such inputs overflow that the spec computes without."""
        if profile in OVERFLOWING or self.shrinks:
            return True
        return profile == "shifted" and not all(
            make_rewrite(step).keeps_range or effect == "exact"
            for (step, _), effect in zip(self.stages, self.effects, strict=True)
        )

    # --- the ring ----------------------------------------------------------------------------

    @cached_property
    def excused(self) -> frozenset[int]:
        """Steps, by their number from 0, that say of themselves that they are not exact in the
        reals, or are by a law that the ring lacks. All others must agree there."""
        return frozenset(
            n
            for n, (step, _) in enumerate(self.stages)
            if not make_rewrite(step).in_ring(self.before(n))
        )

    def segments(self) -> Iterable[tuple[int, int]]:
        """Stretches of steps, as (first, beyond the last), that the ring is asked about whole."""
        ends = [-1, *sorted(self.excused), len(self.stages)]
        return [(a + 1, b) for a, b in itertools.pairwise(ends) if a + 1 < b]

    def in_ring(
        self, inputs: Mapping[str, Array], dims: Mapping[str, int], seed: int
    ) -> RingResult:
        """Each stretch of steps on one example; the first difference ends it."""
        result = RingResult()
        if self.effect != "exact":  # laws of the reals: of finite inputs
            inputs = {n: finite(a) for n, a in inputs.items()}
        for first, end in self.segments():
            wanted = self.ring_of(first, inputs, dims, seed)
            found = _differences(wanted, self.ring_of(end, inputs, dims, seed))
            if not any(d.wrong.any() for d in found.values()):
                result.add(found)
                continue
            step = next(
                n
                for n in range(first, end)
                if n == end - 1
                or any(
                    d.wrong.any()
                    for d in _differences(wanted, self.ring_of(n + 1, inputs, dims, seed)).values()
                )
            )
            result.wrong, result.step = found, step
            result.wanted, result.got = wanted, self.ring_of(end, inputs, dims, seed)
            return result
        return result

    def ring_of(
        self, number: int, inputs: Mapping[str, Array], dims: Mapping[str, int], seed: int
    ) -> dict[str, Residues]:
        """The kernel before the step of this number, on random field elements."""
        kernel = self.before(number)
        return run_ring(kernel, inputs, _dims_of(kernel, dims), seed, self.levels)


@dataclass
class RingResult:
    """What an example showed: how many elements agreed, and how many are lost and differ."""

    elements: int = 0
    unsure: int = 0
    wrong: dict[str, Difference] | None = None
    step: int = 0
    wanted: Mapping[str, Residues] = field(default_factory=dict)
    got: Mapping[str, Residues] = field(default_factory=dict)

    def add(self, found: Mapping[str, Difference]) -> None:
        self.elements += sum(d.wrong.size for d in found.values())
        self.unsure += sum(int(d.unsure.sum()) for d in found.values())


def _dims_of(kernel: Kernel, dims: Mapping[str, int]) -> dict[str, int]:
    """Those of `dims` that are still open in `kernel`."""
    return {d.name: dims[d.name] for d in kernel.dims}


def _differences(
    wanted: Mapping[str, Residues], got: Mapping[str, Residues]
) -> dict[str, Difference]:
    return {name: difference(r, got[name]) for name, r in wanted.items()}


def finite(array: Array) -> Array:
    """Of the shape and dtype of `array`, for the ring: it draws what floats are, but their kind."""
    return np.zeros(array.shape, array.dtype) if array.dtype.kind not in "iub" else array


def _narrowest(kernel: Kernel) -> int:
    """The least precision, in bits, of what rounds floats: ops, casts, reductions, updates."""
    types = {b.name: b.type for b in walk(kernel) if isinstance(b, Buffer)}
    types |= {p.name: p.type for p in kernel.params}
    found = [99]
    for node in walk(kernel):
        match node:
            case Reduce("sum" | "prod"):
                found.append(node.body.dtype.mantissa or 99)
            case Store(op="add" | "mul") if node.target in types:
                found.append(types[node.target].mantissa or 99)
            case Op() if ROUNDINGS.get(node.name):
                found.append(node.type.mantissa or 99)
            case Cast() if node.type.mantissa < _precision(node.value.dtype):
                found.append(node.type.mantissa or 99)
    return min(found)


def _precision(dtype: DType) -> int:
    return dtype.mantissa or dtype.bits


def _greatest(kernel: Kernel) -> float:
    """The greatest finite number of the float of least range in it."""
    found = {n.type for n in walk(kernel) if isinstance(n, Buffer | Op | Cast)}
    found |= {p.type for p in kernel.params}
    return min((float_limits(t)[0] for t in found if t.is_float), default=math.inf)


def stage(spec: Kernel, steps: Iterable[Step]) -> Staged:
    """The derivation applied; RewriteError or ScheduleError where a step is refused."""
    return Staged(spec, replay(spec, steps))


def loosened(wanted: Bounded, own: Bounded, overflows: bool) -> Bounded:
    """The greater of both bounds, around what is wanted; none where laws of the reals fail."""
    bound = np.fmax(wanted.bound, own.bound)
    if wanted.dtype.is_float:
        finite = np.isfinite(wanted.value) & (np.isfinite(own.value) | (not overflows))
        bound = np.where(finite, bound, np.inf)
    elif overflows:  # made of floats that may have overflowed on one way and not on the other
        bound = np.where(own.value == wanted.value, bound, np.inf)
    return replace(wanted, bound=bound)
