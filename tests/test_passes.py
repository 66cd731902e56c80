"""After every step of every default schedule the IR prints, parses back equal, and is valid; the
last one checks. For every example and target, on symbolic dims and on constants."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kir.check import check_kernel, validate
from kir.derivation import replay
from kir.ir import Kernel
from kir.pipeline import Target, choose_steps
from kir.specialise import specialise
from kir.syntax import format_kernel as text_of
from kir.syntax import load, parse, parse_kernel
from kir.testing import kernels

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.kir"))
KERNELS = [
    pytest.param(kernel, id=f"{path.stem}.{kernel.name}")
    for path in EXAMPLES
    for kernel in parse(load(path)).kernels().values()
]
TARGETS = [Target("cpu"), Target("nvidia"), Target("accel")]


def dims_of(kernel: Kernel) -> dict[str, int]:
    """Constants that every example's constraints allow, none a multiple of a tile."""
    return {d.name: 37 for d in kernel.dims if d.default is None}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("constant", [False, True], ids=["symbolic", "constant"])
def test_steps_round_trip(kernel: Kernel, target: Target, constant: bool) -> None:
    """Of long derivations a dozen stages, the last among them."""
    spec = specialise(kernel, dims_of(kernel) if constant else {})
    steps = choose_steps(spec, target)
    stages = replay(spec, steps)
    assert stages, "a default schedule has at least the step `loops`"
    for step, after in reversed(stages[:: -(1 + len(stages) // 12)]):
        assert parse_kernel(text_of(after)) == after, step
        validate(after)
    check_kernel(stages[-1][1])


@given(kernels(), st.sampled_from(TARGETS))
def test_generated_kernels_round_trip_at_every_step(kernel: Kernel, target: Target) -> None:
    spec = specialise(kernel)
    assert parse_kernel(text_of(spec)) == spec
    for step, after in replay(spec, choose_steps(spec, target)):
        assert parse_kernel(text_of(after)) == after, step
        validate(after)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_default_schedule_is_deterministic(kernel: Kernel) -> None:
    spec = specialise(kernel, {})
    for target in TARGETS:
        assert choose_steps(spec, target) == choose_steps(spec, target)
