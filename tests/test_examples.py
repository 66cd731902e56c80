"""Every example: parses, round-trips, is safe, and computes what NumPy computes, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from example_cases import CASES, EXAMPLES, Array, Case, Dims

from kir.backend import Executable
from kir.backends.triton import BACKEND as TRITON
from kir.check import check_kernel, check_module
from kir.derivation import replay
from kir.graphs import resolve
from kir.inputs import random_inputs
from kir.interpret import Bounded, oracle, oracle_graph, run, run_graph
from kir.ir import Graph, Kernel, Module
from kir.pipeline import LOOPS, Target, choose_steps, compile, schedule
from kir.specialise import specialise
from kir.syntax import format_kernel, format_module, parse, parse_kernel

EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def each(pairs: list[tuple[Case, Dims]]) -> pytest.MarkDecorator:
    """A test for each example and sizes, called `softmax-3-5`."""
    names = ["-".join([case.name, *map(str, dims.values())]) for case, dims in pairs]
    return pytest.mark.parametrize(("case", "dims"), pairs, ids=names)


EACH_SIZE = each([(c, d) for c in CASES for d in c.sizes])
FIRST_AND_LAST = each([(c, d) for c in CASES for d in (c.sizes[0], c.sizes[-1])])


@cache
def load(case: Case) -> Module:
    return parse(case.file.read_text(encoding="utf-8"), case.path)


def item(case: Case) -> Kernel | Graph:
    """What a case is about: its file's graph, or the one kernel in it."""
    module = load(case)
    found = module.graphs() or module.kernels()
    return found[case.name]


def inputs_of(case: Case, dims: Dims) -> dict[str, Array]:
    program = item(case)
    arrays = random_inputs(program, dims, 7, load(case))
    rng = np.random.default_rng(11)
    for name, maker in case.make.items():
        arrays[name] = maker(rng, arrays[name].shape, dims)
    return arrays


def expected(case: Case, inputs: Mapping[str, Array], dims: Dims) -> dict[str, Array]:
    """The reference on the inputs, floats as f64."""
    wide = {
        name: a.astype(np.float64) if a.dtype.kind in "fV" or a.dtype.itemsize == 2 else a
        for name, a in inputs.items()
    }
    return case.reference(wide, dims)


def bounded(case: Case, inputs: Mapping[str, Array], dims: Dims) -> dict[str, Bounded]:
    program = item(case)
    if isinstance(program, Graph):
        return oracle_graph(load(case), program, inputs, dims)
    return oracle(program, inputs, dims)


def assert_right(
    got: Mapping[str, Array], case: Case, inputs: Mapping[str, Array], dims: Dims
) -> None:
    """Within the oracle's bounds, and near what NumPy computes, which owes KIR nothing."""
    want = expected(case, inputs, dims)
    oracles = bounded(case, inputs, dims)
    assert got.keys() == want.keys()
    for param in item(case).outputs:
        name = param.name
        assert got[name].dtype == param.type.numpy
        assert got[name].shape == np.shape(want[name])
        tolerance = {"bf16": 2e-2, "f32": 1e-4}.get(param.type.name, 0.0)
        np.testing.assert_allclose(
            got[name].astype(np.float64), want[name], rtol=tolerance, atol=tolerance, err_msg=name
        )
        assert oracles[name].errors(got[name]).max(initial=0.0) <= 1.0, name


def test_the_table_covers_the_folder() -> None:
    """But for the kernels from papers, which `test_papers.py` judges."""
    there = {p.relative_to(EXAMPLES).as_posix() for p in EXAMPLES.rglob("*.kir")}
    assert {c.path for c in CASES} == {path for path in there if not path.startswith("papers/")}


@EACH
def test_opens_with_a_comment(case: Case) -> None:
    assert case.file.read_text(encoding="utf-8").startswith("# ")


@EACH
def test_round_trips(case: Case) -> None:
    text = format_module(load(case))
    assert parse(text) == load(case)
    assert format_module(parse(text)) == text


@EACH
def test_is_safe_for_all_shapes(case: Case) -> None:
    """The spec and its canonical loops, with every dim that is no parameter symbolic."""
    assert check_module(load(case)) == []
    for kernel in load(case).kernels().values():
        check_kernel(schedule(specialise(kernel), LOOPS))


@EACH
def test_default_schedule_round_trips_and_is_safe(case: Case) -> None:
    for kernel in map(specialise, load(case).kernels().values()):
        for _, stage in replay(kernel, choose_steps(kernel, Target("cpu"))):
            assert parse_kernel(format_kernel(stage)) == stage
            kernel = stage
        check_kernel(kernel)


def interpreted(case: Case, inputs: Mapping[str, Array], dims: Dims) -> dict[str, Array]:
    program = item(case)
    if isinstance(program, Graph):
        return run_graph(load(case), program, inputs, dims)
    return run(program, inputs, dims)


@EACH_SIZE
def test_on_the_interpreter(case: Case, dims: Dims) -> None:
    inputs = inputs_of(case, dims)
    assert_right(interpreted(case, inputs, dims), case, inputs, dims)


@EACH_SIZE
def test_the_oracle_agrees_with_the_reference(case: Case, dims: Dims) -> None:
    """In f64, so to many more digits than any run; and its bounds say something."""
    inputs = inputs_of(case, dims)
    want = expected(case, inputs, dims)
    for name, found in bounded(case, inputs, dims).items():
        assert np.shape(found.value) == np.shape(want[name])
        assert np.isfinite(found.bound).all()
        np.testing.assert_allclose(found.value, want[name], rtol=1e-6, atol=1e-6)


Fixed = tuple[tuple[str, int], ...]


def parameters(program: Kernel | Graph, dims: Dims) -> Fixed:
    """The values of the compile-time parameters; all other dims stay symbolic."""
    return tuple((d.name, dims[d.name]) for d in program.dims if d.default is not None)


@cache
def on_cpu(case: Case, fixed: Fixed) -> Executable:
    return compile(item(case), "cpu", dict(fixed), module=load(case))


@EACH_SIZE
def test_on_the_cpu(case: Case, dims: Dims) -> None:
    """Compiled once per example and parameters' values, for all shapes."""
    inputs = inputs_of(case, dims)
    outputs = on_cpu(case, parameters(item(case), dims))(inputs, dims)
    assert_right(outputs, case, inputs, dims)


@EACH
def test_on_the_cpu_for_constant_shapes(case: Case) -> None:
    dims = case.sizes[0]
    inputs = inputs_of(case, dims)
    executable = compile(item(case), "cpu", dims, module=load(case))
    assert_right(executable(inputs, dims), case, inputs, dims)


@cache
def on_triton(kernel: Kernel, fixed: Fixed) -> Executable:
    """The default schedule for NVIDIA, run by Triton's interpreter."""
    spec, goal = specialise(kernel, dict(fixed)), Target("nvidia")
    scheduled = schedule(spec, choose_steps(spec, goal))
    check_kernel(scheduled)
    return TRITON.load(TRITON.lower(scheduled, goal.name, goal.chip, "source"), interpret=True)


@pytest.mark.triton
@FIRST_AND_LAST
def test_on_tritons_interpreter(case: Case, dims: Dims) -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    inputs = inputs_of(case, dims)
    program = item(case)
    if isinstance(program, Kernel):
        outputs = on_triton(program, parameters(program, dims))(inputs, dims)
        assert_right(outputs, case, inputs, dims)
        return
    tensors = dict(inputs)
    for step in resolve(load(case), program, dims):
        into = zip(step.kernel.inputs, step.call.args, strict=True)
        execute = on_triton(step.kernel, parameters(step.kernel, step.dims))
        made = execute({p.name: tensors[a] for p, a in into}, step.dims)
        out = zip(step.kernel.outputs, step.call.results, strict=True)
        tensors |= {result: made[p.name] for p, result in out}
    assert_right({p.name: tensors[p.name] for p in program.outputs}, case, inputs, dims)
