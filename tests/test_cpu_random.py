"""Random kernels on the cpu, under the default schedule and as plain loops, against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kir.backends.cpu import BACKEND
from kir.errors import EvaluationError
from kir.generate import kernels
from kir.interpret import oracle
from kir.ir import Kernel
from kir.pipeline import LOOPS, schedule
from kir.plan.cpu import plan
from kir.testing import dims_choices, make_inputs


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", "")


@settings(
    max_examples=30, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(kernels(), st.integers(0, 1 << 16), st.booleans())
def test_random_kernels_compute_what_they_say(kernel: Kernel, seed: int, planned: bool) -> None:
    scheduled = schedule(kernel, plan(kernel) if planned else LOOPS)
    executable = BACKEND.load(BACKEND.lower(scheduled, "cpu", "native"))
    rng = np.random.default_rng(seed)
    choices = dims_choices(kernel, (scheduled,), seed=seed)
    for n in range(4):
        dims = choices[int(rng.integers(len(choices)))]
        profile = ("tame", "wide", "special", "tame")[n]
        try:
            arrays = make_inputs(kernel, dims, profile, seed + n)
            want = oracle(kernel, arrays, dims)
        except EvaluationError:
            continue  # an index that no bound is known for fell out of range: no valid input
        got = executable(arrays, {d.name: dims[d.name] for d in scheduled.dims})
        for name, expected in want.items():
            errors = expected.errors(got[name])
            assert not (errors > 1).any(), (name, dims, profile)
