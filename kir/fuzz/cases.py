"""One case: a kernel, a derivation, an example, a target; `judge` says whether it holds.

A case is plain data, so that a failure is a file which replays anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kir.derivation import from_record, step_record
from kir.errors import KirError, ScheduleError
from kir.ir import Kernel, Step
from kir.syntax import format_kernel, format_step, parse_kernel
from kir.testing import Example

FORMAT = "kir-fuzz-1"
INTERPRETER = "interpreter"
CRASHES = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError,
           RuntimeError, TypeError, ValueError, MemoryError)  # fmt: skip
"""What no kernel may raise: the findings besides wrong values."""


@dataclass(frozen=True)
class Case:
    """A derivation of a kernel under one example; `kernel` has its parameters still open."""

    kernel: Kernel
    steps: tuple[Step, ...]
    example: Example | None = None
    target: str = INTERPRETER

    def record(self) -> dict[str, Any]:
        example = None
        if self.example is not None:
            dims = dict(self.example.dims)
            example = {"dims": dims, "profile": self.example.profile, "seed": self.example.seed}
        return {
            "format": FORMAT,
            "kernel": format_kernel(self.kernel).splitlines(),
            "steps": [step_record(s) for s in self.steps],
            "example": example,
            "target": self.target,
        }

    def text(self) -> str:
        steps = "\n".join(f"  {format_step(s)}" for s in self.steps) or "  (no steps)"
        example = f"\nfor {self.example}" if self.example else ""
        return f"{format_kernel(self.kernel)}\n\nschedule {{\n{steps}\n}}{example}"


@dataclass(frozen=True)
class Failure:
    """What went wrong: `kind` is what shrinking keeps; `step` the rewrite after which it shows,
    `example` that which the checker was asked about where it could not decide for all."""

    kind: str
    message: str
    step: str = ""
    example: Example | None = None

    @property
    def key(self) -> str:
        """Failures with the same key are counted as one."""
        return f"{self.kind} after {self.step or 'no step'}"


def from_case_record(data: Mapping[str, Any]) -> Case:
    """The case that plain data describes; ScheduleError where it does not fit the form."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ScheduleError(
            "this JSON is no case of the fuzzer", hint=f'it begins with "format": "{FORMAT}"'
        )
    lines = data.get("kernel")
    if not isinstance(lines, list) or not all(isinstance(x, str) for x in lines):
        raise ScheduleError('"kernel" is no list of lines')
    kernel = parse_kernel("\n".join(lines))
    record = {"format": "kir-derivation-1", "name": "case", "kernel": kernel.name,
              "steps": data.get("steps")}  # fmt: skip
    example = data.get("example")
    return Case(
        kernel,
        from_record(record).steps,
        _example(example) if example is not None else None,
        str(data.get("target", INTERPRETER)),
    )


def _example(data: Any) -> Example:
    dims = data.get("dims") if isinstance(data, dict) else None
    if not isinstance(dims, dict) or not all(type(v) is int for v in dims.values()):
        raise ScheduleError('"example" is {"dims": {...}, "profile": ..., "seed": ...}')
    return Example(tuple(dims.items()), str(data.get("profile")), int(data.get("seed", 0)))


def read_case(path: Path) -> Case:
    try:
        return from_case_record(json.loads(path.read_text()))
    except ValueError as error:
        raise ScheduleError(f"{path} is no JSON: {error}") from None


def crash(error: BaseException, what: str = "") -> Failure:
    """The failure that an exception is."""
    return Failure(f"crash: {type(error).__name__}", what + said(error))


def said(error: BaseException) -> str:
    """An error as it is shown, or, of a kernel too broken to be shown, in its own words."""
    try:
        return str(error) or type(error).__name__
    except (*CRASHES, KirError):
        return error.message if isinstance(error, KirError) else type(error).__name__
