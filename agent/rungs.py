"""The rungs of the verifier that a candidate climbs beside the run on its target.

`kir verify` climbs them all with many examples, on symbolic shapes. A candidate's derivation was
found for certain dims, and holds for those; the rungs here are climbed with these dims, or, where
they are too large for that, with smaller ones under the same derivation. What was climbed, and with
which dims, is stored with the candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kir.agent.evaluate import Problem
from kir.cost import statements_run
from kir.errors import EvaluationError, KirError
from kir.ir import Step
from kir.staged import Staged, stage
from kir.subject import Subject
from kir.syntax import parse
from kir.testing import make_inputs
from kir.verify import RING_POINTS

STATEMENTS = 1000
"""Statements that Triton's interpreter runs at most for a candidate: a second or two."""
POINTS = 1 << 24
"""The greatest product of all dims there: the oracle walks them all."""
PROFILE = "tame"


class Refuted(KirError):
    """A rung found the candidate wrong."""


def ring(problem: Problem, steps: tuple[Step, ...]) -> str:
    """Spec and scheduled kernel bit for bit over finite fields; what was shown, in words, "" where
    the derivation does not apply to dims that are small enough. Raises Refuted."""
    found = _smaller(problem, steps, lambda staged, dims: _points(dims) <= RING_POINTS)
    if found is None:
        return ""
    staged, dims = found
    inputs = make_inputs(staged.spec, {}, PROFILE, problem.seed)
    try:
        shown = staged.in_ring(inputs, {}, problem.seed)
    except EvaluationError as error:
        raise Refuted(f"in the ring it stops: {error.message}") from error
    if shown.wrong is not None:
        names = ", ".join(n for n, d in shown.wrong.items() if d.wrong.any())
        raise Refuted(f"in the ring `{names}` differs from the spec's, with {_text(dims)}")
    return f"ring, {_text(dims)}" if staged.segments() else ""


def interpreted(problem: Problem, steps: tuple[Step, ...]) -> str:
    """The generated Triton in Triton's own interpreter against the oracle; what was run, in words.
    Raises Refuted where it is wrong, or where it cannot be run with any dims tried."""
    found = _smaller(
        problem,
        steps,
        lambda staged, dims: (
            _points(dims) <= POINTS and statements_run(staged.kernel.body, {}) <= STATEMENTS
        ),
    )
    if found is None:
        raise Refuted("it does too much for Triton's interpreter, and does not hold for less")
    staged, dims = found
    from kir.agent.worker import mismatch
    from kir.pipeline import Target

    goal = Target(problem.target, problem.via, problem.arch)
    subject = Subject(staged.spec, None, goal, given={staged.spec.name: staged.steps})
    inputs = make_inputs(staged.spec, {}, PROFILE, problem.seed)
    made = subject.run_target(staged.spec, inputs, {})
    wanted = staged.allowed(inputs, {}, PROFILE, fused=True)
    if wanted is None:
        wanted = subject.oracle(inputs, {}, contraction=True)
    for name, bounded in wanted.items():
        wrong = mismatch(bounded, made[name])
        if wrong:
            raise Refuted(f"in Triton's interpreter `{name}` {wrong}, with {_text(dims)}")
    return f"Triton's interpreter, {_text(dims)}"


def _smaller(
    problem: Problem, steps: tuple[Step, ...], fits: Callable[[Staged, Mapping[str, int]], bool]
) -> tuple[Staged, dict[str, int]] | None:
    """The derivation on the problem's dims, or on the largest that fit of those that come of
    halving the greatest again and again; None where there are none, or where it does not apply."""
    from kir.specialise import specialise

    kernel = parse(problem.source, "<store>").kernels()[problem.kernel]
    dims = dict(problem.dims)
    free = [d.name for d in kernel.dims if d.default is None]
    while True:
        try:
            staged = stage(specialise(kernel, dims), steps)
            if fits(staged, dims):
                return staged, dims
        except KirError:  # not with these dims: perhaps with others
            pass
        greatest = max(free, key=lambda n: dims[n], default=None)
        if greatest is None or dims[greatest] <= 1:
            return None
        dims[greatest] //= 2


def _points(dims: Mapping[str, int]) -> int:
    total = 1
    for extent in dims.values():
        total *= max(1, extent)
    return total


def _text(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{n}={v}" for n, v in dims.items())
