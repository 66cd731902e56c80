"""The rewrites: named, typed functions IR -> IR. `REWRITES` is the table of all of them.

A derivation is a list of `ir.Step`s; `replay` applies it and gives the kernel after every step.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from kir.errors import RewriteError, ScheduleError
from kir.ir import Kernel, Step, StepArg
from kir.rewrites.base import Rewrite
from kir.rewrites.inline import Inline
from kir.rewrites.loops import Bind, Fission, Fuse, Hint, Reorder, Split, Unroll
from kir.rewrites.lower import Loops
from kir.rewrites.masks import Unmask
from kir.rewrites.memory import Contract, SetSpace
from kir.rewrites.reduction import ContractFma, RFactor
from kir.rewrites.stage import Stage
from kir.syntax import format_step

_ALL: tuple[type[Rewrite], ...] = (
    Inline,
    Loops,
    Split,
    Reorder,
    Fuse,
    Fission,
    Bind,
    Unroll,
    Hint,
    Unmask,
    Contract,
    SetSpace,
    Stage,
    RFactor,
    ContractFma,
)
REWRITES: dict[str, type[Rewrite]] = {r.name: r for r in _ALL}


def make_rewrite(step: Step) -> Rewrite:
    """The rewrite that a step names, its arguments checked; ScheduleError where they are wrong."""
    if step.rewrite not in REWRITES:
        near = difflib.get_close_matches(step.rewrite, REWRITES, n=3)
        listed = ", ".join(f"`{n}`" for n in (near or REWRITES))
        hint = f"did you mean {listed}?" if near else f"there are {listed}"
        raise ScheduleError(f"there is no rewrite `{step.rewrite}`", hint=hint, span=step.span)
    made = REWRITES[step.rewrite]
    types_of = _field_types(made)
    given: dict[str, StepArg] = {}
    if len(step.args) > len(types_of):
        raise _wrong(step, f"takes at most {len(types_of)} arguments, not {len(step.args)}")
    for key, value in (*zip(types_of, step.args, strict=False), *step.options):
        if key not in types_of:
            raise _wrong(step, f"has no argument `{key}`")
        if key in given:
            raise _wrong(step, f"has the argument `{key}` twice")
        if not _fits(value, types_of[key]):
            raise _wrong(step, f"takes {_spell(types_of[key])} as `{key}`, not {value!r}")
        given[key] = value
    for f in fields(made):
        if f.name not in given and f.default is MISSING:
            raise _wrong(step, f"needs the argument `{f.name}`")
    values: dict[str, Any] = dict(given)
    return made(**values)


def apply_step(kernel: Kernel, step: Step) -> Kernel:
    """The kernel after one step; ScheduleError for a bad step, RewriteError where refused."""
    return make_rewrite(step).apply(kernel)


def replay(kernel: Kernel, steps: Iterable[Step]) -> list[tuple[Step, Kernel]]:
    """Each step with the kernel after it. A refusal says which step it was."""
    done: list[tuple[Step, Kernel]] = []
    for number, step in enumerate(steps, 1):
        try:
            kernel = apply_step(kernel, step)
        except RewriteError as error:
            error.message = f"step {number}, `{format_step(step)}`: {error.message}"
            raise
        done.append((step, kernel))
    return done


@cache
def _field_types(rewrite: type[Rewrite]) -> dict[str, Any]:
    hints = typing.get_type_hints(rewrite)
    return {f.name: hints[f.name] for f in fields(rewrite)}


def _fits(value: StepArg, wanted: Any) -> bool:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, w) for w in args if w is not types.NoneType)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    return type(value) is wanted


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


def _wrong(step: Step, what: str) -> ScheduleError:
    types_of = _field_types(REWRITES[step.rewrite])
    usage = f"{step.rewrite}({', '.join(types_of)})"
    return ScheduleError(f"`{step.rewrite}` {what}", hint=f"its form is `{usage}`", span=step.span)


__all__ = ["REWRITES", "Rewrite", "apply_step", "make_rewrite", "replay"]
