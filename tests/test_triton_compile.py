"""The default GPU schedule of every example: safe, repeatable, and compiled for real chips.

Each example is compiled for one NVIDIA and one AMD chip, which rotate; `-m slow` takes all six.
"""

from __future__ import annotations

import re

import pytest
from example_cases import CASES, Case

from kir.backend import Artifact
from kir.backends.triton import BACKEND
from kir.backends.triton.compile import ARCHS, BINARY
from kir.backends.triton.host import generate
from kir.check import check_kernel
from kir.ir import Kernel
from kir.pipeline import is_scheduled, schedule
from kir.plan.gpu import STYLES, Style, plan
from kir.specialise import specialise
from kir.syntax import format_kernel, parse, parse_kernel

pytestmark = pytest.mark.triton
pytest.importorskip("triton", reason="the extra `triton` is not installed")

EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
CHIPS = [(target, arch) for target, archs in ARCHS.items() for arch in archs]
ROTATING = [
    (case, target, ARCHS[target][(place + turn) % len(ARCHS[target])])
    for place, case in enumerate(CASES)
    for turn, target in enumerate(ARCHS)
]


def kernels(case: Case) -> list[Kernel]:
    """The kernels of an example, their parameters bound."""
    module = parse(case.file.read_text(encoding="utf-8"), case.path)
    return [specialise(k) for k in module.kernels().values()]


def compiled(kernel: Kernel, target: str, arch: str) -> Artifact:
    steps = () if is_scheduled(kernel) else BACKEND.default_schedule(kernel, target, arch)
    return BACKEND.lower(schedule(kernel, steps), target, arch)


def assert_whole(artifact: Artifact) -> None:
    """Every stage is there, the binary is an ELF and holds every function."""
    assert tuple(artifact.stages) == BACKEND.manifest.stages[artifact.target]
    assert all(artifact.stages.values())
    binary = artifact.stages[BINARY[artifact.target]]
    assert isinstance(binary, bytes) and binary[:4] == b"\x7fELF"
    assert all(name.encode() in binary for name in artifact.launch["functions"])


@pytest.mark.parametrize(
    ("case", "target", "arch"), ROTATING, ids=lambda x: x.name if isinstance(x, Case) else x
)
def test_examples_compile(case: Case, target: str, arch: str) -> None:
    for kernel in kernels(case):
        assert_whole(compiled(kernel, target, arch))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "arch"), CHIPS)
@EACH
def test_examples_compile_for_every_chip(case: Case, target: str, arch: str) -> None:
    for kernel in kernels(case):
        assert_whole(compiled(kernel, target, arch))


@pytest.mark.parametrize("style", STYLES)
@EACH
def test_schedules_are_safe_and_repeatable(case: Case, style: Style) -> None:
    for kernel in kernels(case):
        if is_scheduled(kernel):
            continue
        steps = plan(kernel, "sm_90", style)
        assert steps == plan(kernel, "sm_90", style)
        scheduled = schedule(kernel, steps)
        check_kernel(scheduled)
        assert parse_kernel(format_kernel(scheduled)) == scheduled


@EACH
def test_programs_of_scalars_always_have_a_form(case: Case) -> None:
    for kernel in kernels(case):
        steps = () if is_scheduled(kernel) else plan(kernel, "sm_90", "plain")
        assert generate(schedule(kernel, steps)).functions


@pytest.mark.parametrize(
    ("target", "arch", "stage", "instruction"),
    [("nvidia", "sm_90", "ptx", "wgmma.mma_async"), ("amd", "gfx942", "amdgcn", "v_mfma")],
)
@pytest.mark.parametrize(("name", "products"), [("matmul_bf16", 1), ("attention", 2)])
def test_bf16_products_reach_the_matrix_unit(
    name: str, products: int, target: str, arch: str, stage: str, instruction: str
) -> None:
    """Each function that has a `tl.dot` has the instruction: both products of attention."""
    (case,) = (c for c in CASES if c.name == name)
    (kernel,) = kernels(case)
    artifact = compiled(kernel, target, arch)
    source, text = str(artifact.stages["source"]), str(artifact.stages[stage])
    bodies = re.split(r"@triton\.jit\ndef (\w+)\(", source)[1:]
    dots = [n for n, body in zip(bodies[::2], bodies[1::2], strict=True) if "tl.dot(" in body]
    assert len(dots) == products
    comment = "//" if target == "nvidia" else ";"
    parts = re.split(rf"^{comment} ({'|'.join(artifact.launch['functions'])})$", text, flags=re.M)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True)) or {name: text}
    for function in dots:
        assert instruction in texts[function], function
