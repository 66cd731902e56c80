"""The kernels from papers: each is right as a spec, and its derivation does what its page says."""

from __future__ import annotations

import numpy as np
import pytest
import test_examples as examples
from example_cases import EXAMPLES, Case, Dims
from paper_cases import PAPERS

from kir.check import check_kernel
from kir.interpret import run
from kir.ir import Kernel
from kir.pipeline import compile
from kir.specialise import specialise
from kir.syntax import format_module, parse

EACH = pytest.mark.parametrize("case", PAPERS, ids=lambda c: c.name)
EACH_SIZE = examples.each([(c, d) for c in PAPERS for d in c.sizes])
FIRST = examples.each([(c, c.sizes[0]) for c in PAPERS])


def spec(case: Case) -> Kernel:
    found = examples.item(case)
    assert isinstance(found, Kernel)
    return found


def test_the_table_covers_the_folder() -> None:
    there = {p.relative_to(EXAMPLES).as_posix() for p in EXAMPLES.glob("papers/*.kir")}
    assert {c.path for c in PAPERS} == there


@EACH
def test_opens_with_what_it_is_and_cites_the_paper(case: Case) -> None:
    comment = [s for s in case.file.read_text(encoding="utf-8").splitlines() if s.startswith("#")]
    assert comment[0].endswith((".", ",", ":")) or len(comment) > 1
    text = " ".join(comment)
    assert '"' in text and any(str(year) in text for year in range(2010, 2027))


@EACH
def test_round_trips(case: Case) -> None:
    module = examples.load(case)
    assert parse(format_module(module)) == module


@EACH
def test_is_safe_for_all_shapes(case: Case) -> None:
    check_kernel(specialise(spec(case)))


@EACH_SIZE
def test_on_the_interpreter(case: Case, dims: Dims) -> None:
    inputs = examples.inputs_of(case, dims)
    examples.assert_right(run(spec(case), inputs, dims), case, inputs, dims)


@EACH_SIZE
def test_the_oracle_agrees_with_the_reference(case: Case, dims: Dims) -> None:
    """In f64; but where a spec rounds to bf16 on the way, to as many digits as that leaves."""
    inputs = examples.inputs_of(case, dims)
    want = examples.expected(case, inputs, dims)
    for name, found in examples.bounded(case, inputs, dims).items():
        assert np.isfinite(found.bound).mean() > 0.9
        np.testing.assert_allclose(found.value, want[name], rtol=1e-6, atol=1e-6)


@EACH_SIZE
def test_on_the_cpu_by_the_default_schedule(case: Case, dims: Dims) -> None:
    inputs = examples.inputs_of(case, dims)
    fixed = examples.parameters(spec(case), dims)
    outputs = compile(spec(case), "cpu", dict(fixed))(inputs, dims)
    examples.assert_right(outputs, case, inputs, dims)


@pytest.mark.triton
@FIRST
def test_on_tritons_interpreter_by_the_default_schedule(case: Case, dims: Dims) -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    inputs = examples.inputs_of(case, dims)
    outputs = examples.on_triton(spec(case), examples.parameters(spec(case), dims))(inputs, dims)
    examples.assert_right(outputs, case, inputs, dims)
