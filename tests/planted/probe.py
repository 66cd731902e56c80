"""Look for anything wrong, rung by rung; print one line of JSON at the first finding.

    python -m tests.planted.probe CORPUS[,CORPUS...] SECONDS SEED [FIRST]

Programs whose names begin with FIRST are looked at before the others.

What is compared is the program as written with what came of it, never a stored result: the checker,
the ring and the oracle are the judges, as they are for a user's kernel.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kir.check import check_kernel
from kir.dtypes import DTYPES, DType
from kir.errors import (
    DTypeError,
    KirError,
    MissingHardwareError,
    RewriteError,
    UnsupportedError,
)
from kir.fuzz.cases import CRASHES
from kir.fuzz.derivations import Variant, extended, is_spec
from kir.fuzz.judge import Prepared, judge_ring, judge_target, judge_value, load, prepare
from kir.fuzz.session import Session
from kir.ir import (
    ARG_REDUCTIONS,
    REDUCTIONS,
    Axis,
    Define,
    Dim,
    Kernel,
    Param,
    Read,
    Step,
    Var,
)
from kir.ops import OPS, op, result_dtype
from kir.pipeline import Target, choose_steps, expand
from kir.specialise import bind_defaults, specialise
from kir.syntax import load as read
from kir.syntax import parse
from kir.testing import Example, dims_choices

ROOT = Path(__file__).parent.parent.parent
WORK = 1 << 11
"""The greatest product of all dims that is tried."""
PROFILES = (
    *("integers", "tame", "special", "shifted", "wide"),
    *("tame", "ties", "special", "shifted"),
)
TARGETS = ("cpu", "accel", "nvidia")


@dataclass(frozen=True)
class Program:
    """A kernel, the steps to take, and the target to run it on (None: the interpreter)."""

    name: str
    spec: Kernel
    steps: tuple[Step, ...]
    target: str | None = None
    refused: bool = False
    """Whether a step should be refused; where it is not, the result is looked at like any other."""


class Found(Exception):
    """Something is wrong: on which rung, and what."""

    def __init__(self, rung: str, message: str) -> None:
        super().__init__(message)
        self.rung, self.message = rung, message


# --- the ladder --------------------------------------------------------------------------------


def climb(program: Program) -> None:
    """Raise Found at the first rung that shows something wrong."""
    variant = _static(program)
    if variant is None:
        return
    examples = _examples(program.spec, variant.kernel)
    if program.steps:
        for p in examples:
            if p.example.profile in ("integers", "tame"):
                _judge("ring", judge_ring(variant, p))
    if program.steps:
        for p in examples:
            _judge("numerical", judge_value(variant, p))
    if program.target is not None:
        try:
            loaded = load(variant.kernel, Target(program.target))
        except (UnsupportedError, MissingHardwareError):
            return  # said plainly, so nobody is misled
        for p in examples:
            for _ in range(2):
                found = judge_target(loaded, variant, p, program.target)
                _judge(f"on {program.target}", found)


def _static(program: Program) -> Variant | None:
    """The derivation, step by step: one that is refused here, or does not check, is a finding.
    None where a step is refused that should be."""
    variant = Variant((), program.spec)
    try:
        for step in program.steps:
            variant = extended(variant, step)
        if program.target is not None and is_spec(variant.kernel):
            variant = extended(variant, Step("loops"))
        check_kernel(variant.kernel)
    except KirError as error:
        if program.refused and isinstance(error, RewriteError):
            return None
        raise Found("static", error.message) from None
    return variant


def _judge(rung: str, failure: Any) -> None:
    if failure is not None:
        raise Found(rung, failure.message)


def _examples(spec: Kernel, after: Kernel) -> list[Prepared]:
    """A few dims, from empty to one past a tile, each under a profile of values."""
    found = dims_choices(spec, (after,))
    small = [d for d in found if math.prod(max(n, 1) for n in d.values()) <= WORK] or found[:2]
    picked = [small[int(k)] for k in np.linspace(0, len(small) - 1, min(len(small), len(PROFILES)))]
    chosen = list(zip(picked, PROFILES))
    if len(spec.dims) == 1:  # cheap, and a special value is rare in a few hundred
        chosen += [(picked[-1], "special")] * 6
    made = (
        prepare(spec, Example(tuple(dims.items()), profile, n))
        for n, (dims, profile) in enumerate(chosen)
    )
    return [p for p in made if p is not None]


# --- what is looked at -------------------------------------------------------------------------

Programs = Callable[[str], Iterator[Program]]
"""A corpus; those whose names begin with the argument come first."""


def _files(folder: str, first: str) -> list[Path]:
    """Before any is parsed: that takes a while of all."""
    found = sorted((ROOT / folder).glob("*.kir"))
    return sorted(found, key=lambda p: not (first and p.stem.startswith(first)))


def rewrites(first: str) -> Iterator[Program]:
    """The programs that the tests of each rewrite use."""
    for path in _files("tests/rewrites", first):
        module = parse(read(path))
        if module.graphs():
            continue
        (kernel,) = module.kernels().values()
        for name, schedule in module.schedules().items():
            refused = name.startswith("refused")
            yield Program(f"{path.stem} {name}", kernel, schedule.steps, refused=refused)


def on(target: str, inner: Programs) -> Programs:
    """The same programs, run on a target."""

    def programs(first: str) -> Iterator[Program]:
        for p in inner(first):
            if not p.refused:
                yield Program(p.name, p.spec, p.steps, target)

    return programs


def examples(target: str) -> Programs:
    """The examples under the target's default schedule."""

    def programs(first: str) -> Iterator[Program]:
        for path in _files("examples", first):
            for kernel in parse(read(path)).kernels().values():
                special = _with_parameters(kernel)
                yield Program(path.stem, special, choose_steps(special, Target(target)), target)

    return programs


def programs(target: str, files: Sequence[str]) -> Programs:
    """Kernels scheduled by hand, for what no default schedule makes, or makes alone."""

    def found(first: str) -> Iterator[Program]:
        folder = ROOT / "tests" / "planted" / "programs"
        modules = [parse(read(folder / f"{file}.kir")) for file in files]
        kernels = [k for m in modules for k in m.kernels().values()]
        for kernel in sorted(kernels, key=lambda k: not (first and k.name.startswith(first))):
            yield Program(kernel.name, kernel, (), target)

    return found


def papers(first: str) -> Iterator[Program]:
    """The kernels from papers under their own derivations."""
    for path in _files("examples/papers", first):
        module = parse(read(path))
        for name, schedule in module.schedules().items():
            kernel = module.kernels().get(schedule.kernel)
            if kernel is not None:
                steps = expand(schedule, module.schedules())
                yield Program(f"{path.stem} {name}", _with_parameters(kernel), steps)


def _with_parameters(kernel: Kernel) -> Kernel:
    values = bind_defaults(kernel)
    return specialise(
        kernel, {d.name: values[d.name] for d in kernel.dims if d.default is not None}
    )


def operators(target: str) -> Programs:
    """Each op and each reduction on each dtype that it takes, and each cast, alone in a kernel."""

    def programs(first: str) -> Iterator[Program]:
        for title in sorted(SINGLE, key=lambda n: not (first and n.startswith(first))):
            kernel = SINGLE[title]()
            if kernel is not None:
                yield Program(title, kernel, choose_steps(kernel, Target(target)), target)

    return programs


def _singles() -> dict[str, Callable[[], Kernel | None]]:
    """How to make each kernel of `operators`, by title; only what is looked at is made."""
    made: dict[str, Callable[[], Kernel | None]] = {}
    for name in OPS:
        for dtype in DTYPES.values():
            made[f"{name} {dtype}"] = partial(_operator, name, dtype)
    for name in (*REDUCTIONS, *ARG_REDUCTIONS):
        for dtype in DTYPES.values():
            made[f"reduce {name} {dtype}"] = partial(_reduction, name, dtype)
    for source in DTYPES.values():
        for to in DTYPES.values():
            made[f"{source} to {to}"] = partial(
                _parsed,
                f"kernel one[N](x: {source}[N]) -> (y: {to}[N]) {{ y[i: N] = {to}(x[i]) }}",
            )
    return made


def _parsed(text: str) -> Kernel:
    (kernel,) = parse(text).kernels().values()
    return kernel


def _reduction(name: str, dtype: DType) -> Kernel | None:
    made = "i64" if name in ARG_REDUCTIONS else dtype
    head = f"kernel one[M, N](x: {dtype}[M, N]) -> (y: {made}[M])"
    text = f"{head} {{ y[i: M] = {name}(j: N) x[i, j] }}"
    try:
        kernel = _parsed(text)
        check_kernel(kernel)
    except KirError:
        return None  # not for this dtype
    return kernel


def _operator(name: str, dtype: DType) -> Kernel | None:
    rule = OPS[name].rule
    types = [dtype] * OPS[name].arity
    if rule == "select":
        types[0] = DTYPES["bool"]
    if rule in ("philox", "rand"):
        types = [DTYPES["u64"], DTYPES["i64"]]
    try:
        made = result_dtype(name, types)
    except DTypeError:
        return None
    if rule in ("philox", "rand") and dtype.name != "f32":
        return None  # once is enough
    n = Var("N")
    inputs = tuple(Param(f"x{k}", t, (n,)) for k, t in enumerate(types))
    value = op(name, *(Read(p.name, (Var("i"),), p.type) for p in inputs))
    body = (Define("y", (Axis("i", n),), value),)
    return Kernel("one", (Dim("N"),), inputs, (Param("y", made, (n,)),), (), body)


SINGLE = _singles()
CORPORA: dict[str, Programs] = {
    "rewrites": rewrites,
    "papers": papers,
    **{f"{t}:rewrites": on(t, rewrites) for t in TARGETS},
    **{f"{t}:examples": examples(t) for t in TARGETS},
    **{f"{t}:ops": operators(t) for t in TARGETS},
    "cpu:programs": programs("cpu", ("blocks", "cpu")),
    "nvidia:programs": programs("nvidia", ("blocks",)),
    "accel:programs": programs("accel", ("accel",)),
}
"""Beside these, `random` and `TARGET:random` are what the fuzzer makes."""

# --- the search --------------------------------------------------------------------------------


def search(names: list[str], seconds: float, seed: int, first: str = "") -> dict[str, Any]:
    """The first finding, over the corpora in turn, each with its share of the time."""
    started = time.monotonic()
    looked = 0
    for k, name in enumerate(names, 1):
        until = started + seconds * k / len(names)
        programs = _random(name, seed) if name.endswith("random") else CORPORA[name](first)
        for program in programs:
            if time.monotonic() > until:
                break
            looked += 1
            title = program.name if isinstance(program, Program) else "random"
            try:
                if isinstance(program, Program):
                    climb(program)
                else:
                    program()
            except Found as found:
                return _finding(found.rung, found.message, name, title, looked, started)
            except (*CRASHES, KirError) as error:  # a bug may show as any crash: that is a finding
                text = f"{type(error).__name__}: {error}"
                return _finding("crash", text, name, title, looked, started)
    return {"caught": False, "programs": looked, "seconds": round(time.monotonic() - started, 2)}


def _random(name: str, seed: int) -> Iterator[Callable[[], None]]:
    """Kernels of the fuzzer, each with its derivations, as questions to ask."""
    target = name.removesuffix("random").removesuffix(":") or "interpreter"
    session = Session(seed, target)

    def question(number: int) -> Callable[[], None]:
        def ask() -> None:
            for _, failure in session.kernel(number).failures:
                kind = {"value": "numerical", "spec": "numerical"}.get(failure.kind, failure.kind)
                kind = "static" if kind.startswith("check") else kind
                raise Found(f"on {kind}" if kind in TARGETS else kind, failure.message)

        return ask

    return (question(n) for n in range(1_000_000))


def _finding(
    rung: str, message: str, corpus: str, program: str, looked: int, started: float
) -> dict[str, Any]:
    return {
        "caught": True,
        "rung": rung,
        "message": message[:200],
        "corpus": corpus,
        "program": program,
        "programs": looked,
        "seconds": round(time.monotonic() - started, 2),
    }


if __name__ == "__main__":
    corpora, duration, start, *rest = sys.argv[1:]
    print(json.dumps(search(corpora.split(","), float(duration), int(start), *rest)))
