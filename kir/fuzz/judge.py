"""What holds a derivation to its kernel: the properties, each with the failure that breaks it.

| property | failure kind |
|---|---|
| the text of a kernel parses back to it | `text` |
| the result of legal steps passes `kir.check` | `check` |
| a derivation replays from its text and its JSON to the same hash | `replay` |
| the interpreter on the spec is within the oracle's bound | `spec` |
| the interpreter on the result, too; integers bit for bit | `value` |
| spec and result agree bit for bit in the ring | `ring` |
| compiled code is within the bound; its inputs are unchanged | `cpu`, `nvidia`, ... |
| nothing raises what is no KirError | `crash` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kir.backend import Executable
from kir.check import check_kernel
from kir.derivation import derive, from_json, kernel_hash
from kir.errors import (
    EvaluationError,
    KirError,
)
from kir.fuzz.cases import Failure, said
from kir.fuzz.derivations import Variant
from kir.interpret import Bounded, oracle, run
from kir.interpret.domain import poisoned
from kir.interpret.exact import Residues, difference, levels_of, run_ring
from kir.ir import Kernel, Step
from kir.pipeline import Target
from kir.specialise import output_shapes, specialise
from kir.staged import stage
from kir.syntax import format_kernel, parse_kernel, parse_steps
from kir.testing import Example, describe_difference, make_inputs, same_bits

Array = np.ndarray[Any, Any]
RING_SEED = 1
POINTS = 150
"""Most points, the product of all dims, that an example has."""


@dataclass
class Prepared:
    """An example with its inputs and what the oracle wants, computed once for all derivations."""

    example: Example
    inputs: dict[str, Array]
    dims: dict[str, int]
    wanted: Mapping[str, Bounded]
    base: Kernel
    others: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def fused(self) -> Mapping[str, Bounded]:
        """What is wanted where products may go unrounded into sums."""
        if "fused" not in self.others:
            self.others["fused"] = oracle(self.base, self.inputs, self.dims, contraction=True)
        return self.others["fused"]

    def ring(self, levels: int) -> Mapping[str, Residues]:
        name = f"ring {levels}"
        if name not in self.others:
            self.others[name] = run_ring(self.base, self.inputs, self.dims, RING_SEED, levels)
        return self.others[name]

    def bounded_share(self) -> float:
        """The share of output elements about which the oracle says something."""
        bounds = [b.bound for b in self.wanted.values()]
        total = sum(b.size for b in bounds)
        return sum(int(np.isfinite(b).sum()) for b in bounds) / total if total else 0.0


def prepare(base: Kernel, example: Example) -> Prepared | None:
    """The example ready for use; None where an index drawn is out of range: no valid input."""
    dims = dict(example.dims)
    inputs = make_inputs(base, dims, example.profile, example.seed)
    try:
        return Prepared(example, inputs, dims, oracle(base, inputs, dims), base)
    except EvaluationError:
        return None


def _run(kernel: Kernel, prepared: Prepared) -> dict[str, Array]:
    left = {d.name: prepared.dims[d.name] for d in kernel.dims}
    return run(kernel, prepared.inputs, left)


def judge_spec(prepared: Prepared) -> Failure | None:
    """The interpreter on the spec against the oracle."""
    found = wrong(_run(prepared.base, prepared), prepared.wanted)
    return Failure("spec", f"{found}\nfor {prepared.example}") if found else None


def judge_value(variant: Variant, prepared: Prepared) -> Failure | None:
    """The interpreter on the result of a derivation against the oracle of the spec."""
    try:
        got = _run(variant.kernel, prepared)
    except EvaluationError as error:
        return Failure("value", f"it stopped: {error.message}\nfor {prepared.example}")
    return judge_arrays("value", got, variant, prepared, False)


def judge_ring(variant: Variant, prepared: Prepared) -> Failure | None:
    """Spec and result on random field elements; where they differ, step by step, but for those
    steps that say of themselves that they are not exact there."""
    kernel = variant.kernel
    levels = max(levels_of(prepared.base), levels_of(kernel))
    wanted = prepared.ring(levels)
    left = {d.name: prepared.dims[d.name] for d in kernel.dims}
    try:
        got = run_ring(kernel, prepared.inputs, left, RING_SEED, levels)
        if not any(difference(r, got[name]).wrong.any() for name, r in wanted.items()):
            return None
        staged = stage(prepared.base, variant.steps)
        found = staged.in_ring(prepared.inputs, prepared.dims, RING_SEED).wrong
    except EvaluationError as error:
        return Failure("ring", f"it stopped: {error.message}\nfor {prepared.example}")
    for name, apart in (found or {}).items():
        if apart.wrong.any():
            place = [int(i) for i in np.argwhere(apart.wrong)[0]]
            share = f"{int(apart.wrong.sum())} of {apart.wrong.size}"
            return Failure("ring", f"`{name}{place}` differs, {share}\nfor {prepared.example}")
    return None


def judge_arrays(
    kind: str, got: Mapping[str, Array], variant: Variant, prepared: Prepared, fused: bool
) -> Failure | None:
    """Outputs against what the spec allows; then, where they are not within that, against what is
    allowed of a derivation like this. `fused`: products may go unrounded into sums."""
    found = wrong(got, prepared.wanted)
    if found and fused:
        found = wrong(got, prepared.fused())
    if found and variant.effect != "exact":
        staged = stage(prepared.base, variant.steps)
        profile = prepared.example.profile
        allowed = staged.allowed(prepared.inputs, prepared.dims, profile, fused)
        if allowed is not None:
            found = wrong(got, allowed)
    return Failure(kind, f"{found}\nfor {prepared.example}") if found else None


def wrong(got: Mapping[str, Array], wanted: Mapping[str, Bounded]) -> str | None:
    """What is wrong with outputs, in words; None for nothing."""
    for name, bounded in wanted.items():
        array = np.asarray(got[name])
        if array.shape != bounded.value.shape or array.dtype != bounded.dtype.numpy:
            return f"`{name}` came out as {array.dtype}{list(array.shape)}"
        errors = bounded.errors(array)
        if errors.size and float(errors.max()) > 1:
            return f"`{name}`\n{describe_difference(bounded, array, errors)}"
    return None


# --- text and replay -----------------------------------------------------------------------------


def judge_text(kernel: Kernel) -> Failure | None:
    """Print and parse."""
    text = format_kernel(kernel)
    try:
        same = parse_kernel(text) == kernel
    except KirError as error:
        return Failure("text", f"the text of the kernel is refused:\n{said(error)}")
    return None if same else Failure("text", f"the text parses to another kernel:\n{text}")


def judge_check(base: Kernel, kernel: Kernel, prepared: Sequence[Prepared]) -> Failure | None:
    """The checker on the result; where it cannot decide for all dims, for those of the examples."""
    try:
        check_kernel(kernel)
    except KirError:
        for p in prepared:
            try:
                check_kernel(specialise(kernel, {d.name: p.dims[d.name] for d in kernel.dims}))
            except KirError as sure:
                kind, message = f"check: {type(sure).__name__}", f"{said(sure)}\nfor {p.example}"
                return Failure(kind, message, example=p.example)
        return None
    return None


def judge_replay(kernel: Kernel, steps: Sequence[Step], result: Kernel) -> Failure | None:
    """The derivation through its JSON and its text."""
    made = derive(replace(kernel), steps)  # a copy: the results of rewrites are kept on a kernel
    if made.result != kernel_hash(result):
        return Failure("replay", "the same steps gave another kernel the second time")
    again = from_json(made.json())
    if again != made:
        return Failure("replay", f"the JSON reads back as another derivation:\n{made.json()}")
    text = made.text()
    body = text[text.index("{") + 1 : text.rindex("}")]
    if tuple(parse_steps(body)) != made.steps:
        return Failure("replay", f"the text reads back as another derivation:\n{text}")
    return None


# --- backends ------------------------------------------------------------------------------------


def load(kernel: Kernel, target: Target) -> Executable:
    """Compiled code of a scheduled kernel; Triton's is generated and interpreted, and the cpu's
    runs on two threads, however small the work."""
    backend: Any = target.backend
    if backend.manifest.name == "triton":
        artifact = backend.lower(kernel, target.name, target.chip, "source")
        interpreted: Executable = backend.load(artifact, interpret=True)
        return interpreted
    artifact = backend.lower(kernel, target.name, target.chip)
    if target.name == "cpu":
        threaded: Executable = backend.with_threads(artifact, -2)
        return threaded
    loaded: Executable = backend.load(artifact)
    return loaded


def judge_target(
    program: Executable, variant: Variant, prepared: Prepared, target: str
) -> Failure | None:
    """A run of compiled code, its outputs poisoned before, its inputs compared after."""
    inputs = {n: a.copy() for n, a in prepared.inputs.items()}
    shapes = output_shapes(prepared.base, prepared.dims)
    outputs = {p.name: poisoned(shapes[p.name], p.type) for p in variant.kernel.outputs}
    left = {d.name: prepared.dims[d.name] for d in variant.kernel.dims}
    got = program(inputs, left, outputs)
    for name, array in inputs.items():
        if not same_bits(prepared.inputs[name], array).all():
            return Failure(target, f"the input `{name}` was changed\nfor {prepared.example}")
    return judge_arrays(target, got, variant, prepared, target != "cpu")
