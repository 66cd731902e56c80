"""Running a compiled kernel on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact, Executable
from kir.backends.cpu.native import as_function, load_object
from kir.errors import EvaluationError, InputDataError
from kir.ir import Param, Read, Store, walk
from kir.specialise import infer_dims, output_shapes
from kir.syntax import format_expr

NDArray = np.ndarray[Any, Any]
PLANS_KEPT = 64


@dataclass(frozen=True)
class CallPlan:
    """What a call on given shapes needs: the dims in order, the outputs' shapes."""

    dims: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]


@dataclass
class CpuExecutable(Executable):
    """A kernel in this process. `threads` = 0 leaves the number to OMP_NUM_THREADS (or all)."""

    artifact: Artifact
    threads: int = 0
    _plans: dict[Any, CallPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        obj, kernel = self.artifact.stages["obj"], self.artifact.kernel
        assert isinstance(obj, bytes)
        self._loaded = load_object(obj, self.artifact.launch["symbol"])
        self._checked_build = bool(self.artifact.launch["checked"])
        pointers = len(kernel.params) + self._checked_build
        self._function = as_function(self._loaded, pointers, len(kernel.dims))
        self._inputs = [(p.name, p.type.numpy) for p in kernel.inputs]
        self._outputs = [(p.name, p.type.numpy) for p in kernel.outputs]

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, NDArray]:
        """Run. InputDataError for arrays of a wrong dtype, shape or layout, ConstraintError for
        dims that contradict one another or break a constraint; EvaluationError where the build is
        checked and an index that is read from a tensor is out of range."""
        arrays = []
        for (name, dtype), p in zip(self._inputs, self.artifact.kernel.inputs, strict=True):
            a = inputs.get(name)
            if a.__class__ is not np.ndarray or a.dtype != dtype or not a.flags.c_contiguous:
                a = self._checked(p, a)
            arrays.append(a)
        plan = self._plan(tuple(a.shape for a in arrays), dims)
        results = self._results(plan, outputs, arrays)
        pointers = [a.ctypes.data for a in (*arrays, *results.values())]
        if not self._checked_build:
            self._function(*pointers, *plan.dims, self.threads)
            return results
        cell = np.zeros(4, np.int64)
        self._function(*pointers, cell.ctypes.data, *plan.dims, self.threads)
        if cell[0]:
            raise self._out_of_range(*cell.tolist())
        return results

    def _out_of_range(self, place: int, dim: int, index: int, extent: int) -> EvaluationError:
        """The error that a checked build has recorded; see `kir.backends.llvm.emit`."""
        kernel = self.artifact.kernel
        node = next(islice(walk(kernel), place - 1, None))
        assert isinstance(node, Read | Store)
        name = node.tensor if isinstance(node, Read) else node.target
        text = f"{name}[{', '.join(format_expr(i) for i in node.indices)}]"
        return EvaluationError(
            f"index {dim} of `{text}` is {index}, out of range: axis {dim} of `{name}` has "
            f"{extent} elements" + (f", 0 to {extent - 1}" if extent else ""),
            hint="`where`, `if` or a read with `else` can leave such places out",
            kernel=kernel,
            node=node,
        )

    def _plan(
        self, shapes: tuple[tuple[int, ...], ...], dims: Mapping[str, int] | None
    ) -> CallPlan:
        key = (shapes, tuple(sorted(dims.items())) if dims else ())
        plan = self._plans.get(key)
        if plan is None:
            kernel = self.artifact.kernel
            named = {p.name: s for p, s in zip(kernel.inputs, shapes, strict=True)}
            known = {d.name for d in kernel.dims}
            given = {n: v for n, v in (dims or {}).items() if n in known}
            bound = infer_dims(kernel, named, given)
            made = output_shapes(kernel, bound)
            plan = CallPlan(
                tuple(bound[d.name] for d in kernel.dims),
                tuple(made[p.name] for p in kernel.outputs),
            )
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _results(
        self, plan: CallPlan, given: Arrays | None, arrays: list[NDArray]
    ) -> dict[str, NDArray]:
        if given is None:
            return {
                name: np.empty(shape, dtype)
                for (name, dtype), shape in zip(self._outputs, plan.outputs, strict=True)
            }
        results: dict[str, NDArray] = {}
        for p, shape in zip(self.artifact.kernel.outputs, plan.outputs, strict=True):
            a = self._checked(p, given.get(p.name))
            if a.shape != shape or not a.flags.writeable:
                why = "is read-only" if a.shape == shape else f"has shape {a.shape}, not {shape}"
                raise self._refusal(p, why)
            for other in (*arrays, *results.values()):
                if np.may_share_memory(a, other):
                    raise self._refusal(p, "shares memory with another tensor of the call")
            results[p.name] = a
        return results

    def _checked(self, p: Param, a: Any) -> NDArray:
        if a is None:
            raise self._refusal(p, "is not given")
        if not isinstance(a, np.ndarray):
            raise self._refusal(p, f"is a {type(a).__name__}, not a NumPy array")
        if a.dtype != p.type.numpy:
            raise self._refusal(p, f"is an array of {a.dtype}, not {p.type}")
        if not a.flags.c_contiguous:
            raise self._refusal(p, "is not contiguous in row-major order")
        return a

    def _refusal(self, p: Param, why: str) -> InputDataError:
        return InputDataError(
            f"`{p.name}` {why}",
            hint=f"declared is `{p.name}: {p.type}` with {len(p.shape)} axes",
            kernel=self.artifact.kernel,
            node=p,
        )
