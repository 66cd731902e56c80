"""The rewrites: named, typed functions IR -> IR. `REWRITES` is the table of all of them.

A derivation is a list of `ir.Step`s (`kir.derivation`). `legal_moves` lists what may be done next.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, ClassVar, TypeVar

from kir.errors import RewriteError, ScheduleError
from kir.ir import Kernel, Step, StepArg
from kir.rewrites.algebra import Factor
from kir.rewrites.base import EFFECTS, Choice, Domain, Effect, Move, Rewrite, Whole
from kir.rewrites.carry import Carry
from kir.rewrites.cast_storage import CastStorage
from kir.rewrites.compute import ComputeAt
from kir.rewrites.cse import Cse
from kir.rewrites.fast import Fast
from kir.rewrites.flush import Flush
from kir.rewrites.fuse import Fuse, Merge
from kir.rewrites.inline import Inline, Recompute
from kir.rewrites.kinds import Bind, Hint, Unroll, Vectorise
from kir.rewrites.layout import SetLayout
from kir.rewrites.lift import Lift
from kir.rewrites.loops import Fission, Reorder, Swizzle
from kir.rewrites.lower import Loops
from kir.rewrites.masks import Unmask
from kir.rewrites.memory import Contract, SetSpace
from kir.rewrites.online import Online
from kir.rewrites.outline import Hoist, Outline
from kir.rewrites.pipeline import Pipeline
from kir.rewrites.precision import AccumulateIn, NarrowStorage
from kir.rewrites.reduction import ContractFma, ParallelReduce, RFactor
from kir.rewrites.regroup import Distribute, Join, Regroup
from kir.rewrites.reuse import Fold, Reuse
from kir.rewrites.rules import Rule
from kir.rewrites.shadow import Shadow
from kir.rewrites.skip import Skip
from kir.rewrites.split import Split
from kir.rewrites.split_reduction import SplitK, SplitReduction
from kir.rewrites.stage import Stage, StageOut
from kir.rewrites.transpose import Transpose
from kir.rewrites.unswitch import Unswitch

_ALL: tuple[type[Rewrite], ...] = (
    Inline,
    Recompute,
    Factor,
    Outline,
    Hoist,
    Cse,
    Distribute,
    Join,
    Regroup,
    Transpose,
    Rule,
    Loops,
    Split,
    Reorder,
    Swizzle,
    Fuse,
    Merge,
    Fission,
    Bind,
    Unroll,
    Hint,
    Pipeline,
    Vectorise,
    Unmask,
    Unswitch,
    Contract,
    SetSpace,
    Stage,
    ComputeAt,
    StageOut,
    Lift,
    SetLayout,
    Reuse,
    Fold,
    Shadow,
    Carry,
    RFactor,
    ParallelReduce,
    SplitReduction,
    SplitK,
    ContractFma,
    NarrowStorage,
    CastStorage,
    Flush,
    AccumulateIn,
    Fast,
    Online,
    Skip,
)
REWRITES: dict[str, type[Rewrite]] = {r.name: r for r in _ALL}


def make_rewrite(step: Step) -> Rewrite:
    """The rewrite that a step names, its arguments checked; ScheduleError where they are wrong."""
    made = named(step, REWRITES)
    types_of, values = _field_types(made), arguments(step, made)
    first = next(iter(types_of), "")
    if isinstance(values.get(first), tuple) and types_of[first] is str:
        return Each(tuple(made(**{**values, first: name}) for name in values[first]))
    return made(**values)


R = TypeVar("R")


def named(step: Step, table: Mapping[str, type[R]]) -> type[R]:
    """The class in `table` that a step names; ScheduleError where there is none."""
    if step.rewrite not in table:
        near = difflib.get_close_matches(step.rewrite, table, n=3)
        listed = ", ".join(f"`{n}`" for n in (near or table))
        hint = f"did you mean {listed}?" if near else f"there are {listed}"
        raise ScheduleError(f"there is no rewrite `{step.rewrite}`", hint=hint, span=step.span)
    return table[step.rewrite]


def arguments(step: Step, made: type) -> dict[str, Any]:
    """The fields of the dataclass `made` that a step gives; ScheduleError where they are wrong."""
    types_of = _field_types(made)
    given: dict[str, StepArg] = {}
    if len(step.args) > len(types_of):
        what = f"takes at most {len(types_of)} arguments, not {len(step.args)}"
        raise _wrong(step, made, what)
    for key, value in (*zip(types_of, step.args, strict=False), *step.options):
        if key not in types_of:
            raise _wrong(step, made, f"has no argument `{key}`")
        if key in given:
            raise _wrong(step, made, f"has the argument `{key}` twice")
        if not _fits(value, types_of[key]) and not _group(value, key, types_of):
            raise _wrong(step, made, f"takes {_spell(types_of[key])} as `{key}`, not {value!r}")
        given[key] = value
    for f in fields(made):
        if f.name not in given and f.default is MISSING:
            raise _wrong(step, made, f"needs the argument `{f.name}`")
    return dict(given)


@dataclass(frozen=True)
class Each(Rewrite):
    """A step whose first argument is a group of names where one is due: `split((i, j), 8)` is
    `split(i, 8)`, then `split(j, 8)`."""

    name: ClassVar[str] = "each"
    effect: ClassVar[Effect] = "approximates"
    parts: tuple[Rewrite, ...]

    def edit(self, kernel: Kernel) -> Kernel:
        for part in self.parts:
            kernel = part.apply(kernel)
        return kernel

    def effect_on(self, kernel: Kernel) -> Effect:
        found: Effect = "exact"
        for part in self.parts:
            found = max(found, part.effect_on(kernel), key=EFFECTS.index)
            kernel = part.apply(kernel)
        return found

    def bound(self) -> str:
        return "; ".join(dict.fromkeys(b for p in self.parts if (b := p.bound())))

    @property
    def keeps_range(self) -> bool:
        return all(part.keeps_range for part in self.parts)

    def in_ring(self, kernel: Kernel) -> bool:
        for part in self.parts:
            if not part.in_ring(kernel):
                return False
            kernel = part.apply(kernel)
        return True

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for part in self.parts:
            after = part.apply(before)
            step = part.forward(before, after)
            moved = {
                n: tuple(w for m in now for w in step.get(m, (m,))) for n, now in found.items()
            }
            found, before = {**step, **moved}, after
        return found


def apply_step(kernel: Kernel, step: Step) -> Kernel:
    """The kernel after one step; ScheduleError for a bad step, RewriteError where refused."""
    return make_rewrite(step).apply(kernel)


def canonical(step: Step) -> Step:
    """The step as it is always written: arguments without a default by place, others by name,
    defaults left out. ScheduleError for a bad step."""
    types_of = _field_types(REWRITES[step.rewrite]) if step.rewrite in REWRITES else {}
    make_rewrite(step)
    given = {**dict(zip(types_of, step.args, strict=False)), **dict(step.options)}
    defaults = {f.name: f.default for f in fields(REWRITES[step.rewrite])}
    args = tuple(given[n] for n in types_of if defaults[n] is MISSING)
    options = tuple(
        (n, given[n])
        for n in types_of
        if defaults[n] is not MISSING and n in given and given[n] != defaults[n]
    )
    return Step(step.rewrite, args, options, span=step.span)


def refusal(kernel: Kernel, step: Step) -> RewriteError | None:
    """Why a step is illegal on `kernel`, or None. Quicker than applying it: nothing is tidied."""
    try:
        make_rewrite(step).edit(kernel)
    except RewriteError as error:
        return error
    return None


def legal_moves(kernel: Kernel, names: Iterable[str] | None = None) -> tuple[Move, ...]:
    """All legal moves on `kernel` (of the rewrites in `names`), each with the domains of the
    parameters it leaves open, in the order of the table and of the code."""
    chosen = REWRITES.values() if names is None else [REWRITES[n] for n in names]
    return tuple(
        move
        for rewrite in chosen
        for move in rewrite.candidates(kernel)
        if refusal(kernel, move.step()) is None
    )


@cache
def _field_types(rewrite: type) -> dict[str, Any]:
    hints = typing.get_type_hints(rewrite)
    return {f.name: hints[f.name] for f in fields(rewrite)}


def _fits(value: StepArg, wanted: Any) -> bool:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, w) for w in args if w is not types.NoneType)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    return type(value) is wanted


def _group(value: StepArg, key: str, types_of: dict[str, Any]) -> bool:
    """Whether `value` is a group of names for a first argument that is one name."""
    first = key == next(iter(types_of)) and types_of[key] is str
    return first and isinstance(value, tuple) and bool(value) and _fits(value, tuple[str, ...])


def _spell(wanted: Any) -> str:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_spell(w) for w in args if w is not types.NoneType)
    if origin is tuple:
        return f"a group of {_SPELLED[args[0]][1]}"
    return _SPELLED[wanted][0]


_SPELLED: dict[Any, tuple[str, str]] = {
    str: ("a name", "names"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
}


def _wrong(step: Step, made: type, what: str) -> ScheduleError:
    usage = f"{step.rewrite}({', '.join(_field_types(made))})"
    return ScheduleError(f"`{step.rewrite}` {what}", hint=f"its form is `{usage}`", span=step.span)


__all__ = [
    "EFFECTS",
    "REWRITES",
    "Choice",
    "Domain",
    "Effect",
    "Move",
    "Rewrite",
    "Whole",
    "apply_step",
    "canonical",
    "legal_moves",
    "make_rewrite",
    "refusal",
]
