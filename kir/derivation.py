"""Derivations: how a kernel came to be, as data that anyone can replay.

A derivation is the list of rewrites that leads from a spec to a scheduled kernel. It has a text
form (`schedule name of kernel { split(j, 1024) ... }`, read by the parser) and a JSON form, both of
which round-trip; replay is deterministic, so the hash of the result is part of the claim.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kir.errors import RewriteError, ScheduleError
from kir.interpret.rules import OpError
from kir.ir import Kernel, Module, Schedule, Step, StepArg
from kir.rewrites import EFFECTS, Each, Effect, canonical, make_rewrite
from kir.rewrites.base import names_in
from kir.rewrites.graph import GRAPH_REWRITES, make_graph_rewrite
from kir.syntax import format_kernel, format_module, format_step

FORMAT = "kir-derivation-1"


def kernel_hash(kernel: Kernel) -> str:
    """A kernel's identity: SHA-256 of its canonical text."""
    return hashlib.sha256(format_kernel(kernel).encode()).hexdigest()


@dataclass(frozen=True)
class Derivation:
    """Steps that begin at the kernel called `kernel`; `spec` and `result` are the hashes of the
    kernels at both ends, where known."""

    kernel: str
    steps: tuple[Step, ...] = ()
    name: str = "derived"
    spec: str | None = None
    result: str | None = None

    def __add__(self, other: Derivation) -> Derivation:
        """This one, then `other`; ScheduleError where `other` does not begin where this ends."""
        if other.kernel != self.kernel:
            raise ScheduleError(
                f"a derivation of `{other.kernel}` cannot go on from one of `{self.kernel}`",
                hint="both are of one kernel",
            )
        if self.result and other.spec and self.result != other.spec:
            raise ScheduleError(
                f"`{other.name}` does not begin where `{self.name}` ends",
                hint=f"it begins at {other.spec[:12]}, not at {self.result[:12]}",
            )
        return replace(self, steps=self.steps + other.steps, result=other.result)

    def text(self) -> str:
        """`schedule name of kernel { ... }`; the hashes are not part of it."""
        return format_module(Module((Schedule(self.name, self.kernel, self.steps),)))

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "kernel": self.kernel,
            "spec": self.spec,
            "result": self.result,
            "steps": [step_record(s) for s in self.steps],
        }

    def json(self) -> str:
        return json.dumps(self.record(), indent=2) + "\n"

    def replay(self, kernel: Kernel) -> list[tuple[Step, Kernel]]:
        """Each step with the kernel after it. RewriteError says which step no longer applies and
        why; ScheduleError where the result is not the one that the derivation claims."""
        try:
            stages = replay(kernel, self.steps)
        except RewriteError as error:
            if self.spec is not None and self.spec != kernel_hash(kernel):
                error.message += f"; `{self.name}` was made for another version of `{self.kernel}`"
            raise
        last = stages[-1][1] if stages else kernel
        if self.result is not None and kernel_hash(last) != self.result:
            other = self.spec is not None and self.spec != kernel_hash(kernel)
            why = f"`{self.kernel}` has changed" if other else "the rewrites have changed"
            raise ScheduleError(
                f"`{self.name}` gives another kernel than it claims: {why}",
                hint="verify the result, and save the derivation anew",
            )
        return stages


def derive(kernel: Kernel, steps: Iterable[Step], name: str = "derived") -> Derivation:
    """The derivation that these steps are, applied once to know its hashes."""
    steps = tuple(canonical(s) for s in steps)
    stages = replay(kernel, steps)
    last = stages[-1][1] if stages else kernel
    return Derivation(kernel.name, steps, name, kernel_hash(kernel), kernel_hash(last))


def replay(kernel: Kernel, steps: Iterable[Step]) -> list[tuple[Step, Kernel]]:
    """Each step with the kernel after it. A refusal says which step it was, and, where it names
    something that an earlier step renamed or removed, which one did."""
    done: list[tuple[Step, Kernel]] = []
    stages = [kernel]
    for number, step in enumerate(steps, 1):
        try:
            after = make_rewrite(step).apply(kernel)
        except RewriteError as error:
            error.message = f"step {number}, `{format_step(step)}`: {error.message}"
            lost = _lost(step, stages, [s for s, _ in done])
            if lost:
                error.hint = f"{lost}; {error.hint}" if error.hint else lost
            raise
        done.append((step, after))
        stages.append(after)
        kernel = after
    return done


def _lost(step: Step, stages: list[Kernel], done: list[Step]) -> str | None:
    """Which of the steps `done` took a name that `step` uses and the kernel no longer has."""
    here = names_in(stages[-1])
    for name in _words(step.args) + _words(tuple(v for _, v in step.options)):
        if name in here:
            continue
        for number in range(len(done), 0, -1):
            earlier, before, after = done[number - 1], stages[number - 1], stages[number]
            if name not in names_in(before) or name in names_in(after):
                continue
            now = make_rewrite(earlier).forward(before, after).get(name, ())
            became = " and ".join(f"`{n}`" for n in now)
            what = f"made it {became}" if became else "removed it"
            return f"step {number}, `{format_step(earlier)}`, {what} (`{name}`)"
    return None


def _words(args: tuple[StepArg, ...]) -> list[str]:
    found: list[str] = []
    for arg in args:
        if isinstance(arg, str):
            found.append(arg)
        elif isinstance(arg, tuple):
            found.extend(_words(arg))
    return found


def effect_of(kernel: Kernel, stages: Iterable[tuple[Step, Kernel]]) -> Effect:
    """The strongest effect of a replayed derivation, each step judged where it was applied."""
    strongest: Effect = "exact"
    for step, after in stages:
        strongest = max(strongest, make_rewrite(step).effect_on(kernel), key=EFFECTS.index)
        kernel = after
    return strongest


def approximations(
    kernel: Kernel, stages: Iterable[tuple[Step, Kernel]]
) -> list[tuple[Kernel, Mapping[str, OpError]]]:
    """Of a replayed derivation: each kernel in which the next step put something else in the place
    of ops, with how far that may be off. What the result may differ by, beside its roundings, is
    the sum of the oracle's bounds for these."""
    found = []
    for step, after in stages:
        rewrite = make_rewrite(step)
        for part in rewrite.parts if isinstance(rewrite, Each) else (rewrite,):
            errors = part.errors(kernel)
            if errors:
                found.append((kernel, errors))
            if isinstance(rewrite, Each):
                kernel = part.apply(kernel)
        kernel = after
    return found


# --- the JSON form -----------------------------------------------------------------------------


def step_record(step: Step) -> dict[str, Any]:
    """`{"rewrite": "split", "args": ["j", 8], "options": {"tail": "mask"}}`; groups are lists."""
    return {
        "rewrite": step.rewrite,
        "args": [_plain(a) for a in step.args],
        "options": {name: _plain(value) for name, value in step.options},
    }


def _plain(arg: StepArg) -> Any:
    return [_plain(a) for a in arg] if isinstance(arg, tuple) else arg


def from_record(record: Any) -> Derivation:
    """The derivation that plain data describes; ScheduleError where it does not fit the form."""
    data = _mapping(record, "a derivation")
    if data.get("format") != FORMAT:
        raise ScheduleError(
            "this JSON is no derivation of this version",
            hint=f'it begins with "format": "{FORMAT}"',
        )
    steps = data.get("steps")
    if not isinstance(steps, list):
        raise ScheduleError('"steps" is no list')
    names = {key: data.get(key) for key in ("kernel", "name")}
    hashes = {key: data.get(key) for key in ("spec", "result")}
    for key, value in {**names, **hashes}.items():
        if not isinstance(value, str) and not (value is None and key in hashes):
            raise ScheduleError(f'"{key}" is no text')
    made = tuple(_step(s, n) for n, s in enumerate(steps, 1))
    return Derivation(steps=made, **names, **hashes)  # type: ignore[arg-type]


def from_json(text: str) -> Derivation:
    """The derivation in a JSON text; ScheduleError where it is none."""
    try:
        return from_record(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"this is no JSON: {error}") from None


def _step(record: Any, number: int) -> Step:
    data = _mapping(record, f"step {number}")
    name, args = data.get("rewrite"), data.get("args", [])
    options = _mapping(data.get("options", {}), f"the options of step {number}")
    if not isinstance(name, str) or not isinstance(args, list):
        raise ScheduleError(
            f"step {number} is malformed",
            hint='a step is {"rewrite": "split", "args": ["j", 8], "options": {}}',
        )
    given = tuple(_argument(a, number) for a in args)
    named = tuple((k, _argument(v, number)) for k, v in options.items())
    step = Step(name, given, named)
    # an unknown rewrite or a wrong argument is reported here
    (make_graph_rewrite if name in GRAPH_REWRITES else make_rewrite)(step)
    return step


def _argument(value: Any, number: int) -> StepArg:
    if isinstance(value, list):
        return tuple(_argument(v, number) for v in value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    raise ScheduleError(f"step {number} has an argument {value!r}, which is none")


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ScheduleError(f"{what} is no JSON object")
    return value
