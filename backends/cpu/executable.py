"""Running a compiled kernel on NumPy arrays."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact, Executable
from kir.backends.cpu.direct import Spec, direct
from kir.backends.cpu.native import load_code
from kir.backends.cpu.packed import packed_symbol
from kir.errors import EvaluationError, InputDataError, UsageError
from kir.ir import Param, Read, Store, walk
from kir.specialise import infer_dims, output_shapes
from kir.syntax import format_expr

NDArray = np.ndarray[Any, Any]
PLANS_KEPT = 64
ALIGNED_FROM = 1 << 15
"""Bytes of an output from which on it gets memory aligned to cache lines."""
MAX_THREADS = 4096


class CallPlan:
    """What a call on given shapes needs: `dims` in order, the inputs' and outputs' `specs`.

    From its second call on a plan has a built-in function of its own (see `direct`)."""

    def __init__(self, dims: tuple[int, ...], specs: tuple[Spec, ...], given: Any) -> None:
        self.dims, self.specs, self.given = dims, specs, given
        self.outputs = [s for s in specs if s.output]
        self._makers = [maker(s.shape, s.dtype) for s in self.outputs]
        self.calls = 0
        self.direct: Callable[..., bool] | None = None

    def allocate(self) -> list[NDArray]:
        return [make() for make in self._makers]


def maker(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], NDArray]:
    """What gives fresh memory; where it is large, aligned to cache lines, as `malloc`'s is not."""
    size = math.prod(shape) * dtype.itemsize
    return partial(np.empty if size < ALIGNED_FROM else _aligned, shape, dtype)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray:
    raw = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
    return np.ndarray(shape, dtype, raw, -raw.ctypes.data % 64)


def check_threads(threads: int) -> int:
    """UsageError for a number of threads that is none."""
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise UsageError(f"threads is {threads!r}", hint="0 leaves it to OMP_NUM_THREADS")
    if abs(threads) > MAX_THREADS:
        raise UsageError(f"{threads} threads are too many", hint=f"at most {MAX_THREADS}")
    return threads


@dataclass
class CpuExecutable(Executable):
    """A kernel in this process.

    `threads` = 0 leaves the number to OMP_NUM_THREADS (or all processors); a loop with little work
    uses fewer. Below 0, exactly that many are used, however little the work.
    """

    artifact: Artifact
    threads: int = 0
    _plans: dict[Any, CallPlan] = field(default_factory=dict)
    _last: CallPlan | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        obj, kernel = self.artifact.stages["obj"], self.artifact.kernel
        assert isinstance(obj, bytes)
        self._code = load_code(obj)
        self._checked_build = bool(self.artifact.launch["checked"])
        self._entry = self._code.address(packed_symbol(kernel))
        self._function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(self._entry)
        self._inputs = [(p.name, p.type.numpy) for p in kernel.inputs]
        self._outputs = [(p.name, p.type.numpy) for p in kernel.outputs]
        self._in_names = [p.name for p in kernel.inputs]
        self._out_names = [p.name for p in kernel.outputs]

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, NDArray]:
        """Run. InputDataError for arrays of a wrong dtype, shape or layout, ConstraintError for
        dims that contradict one another or break a constraint; EvaluationError where the build is
        checked and an index that is read from a tensor is out of range."""
        plan = self._last
        if plan is not None and plan.direct is not None and plan.given == dims:
            try:
                arrays = [inputs[n] for n in self._in_names]
                made = [outputs[n] for n in self._out_names] if outputs else plan.allocate()
            except KeyError:
                return self._slowly(inputs, dims, outputs)
            if plan.direct(*arrays, *made):
                return dict(zip(self._out_names, made))
        return self._slowly(inputs, dims, outputs)

    def _slowly(
        self, inputs: Arrays, dims: Mapping[str, int] | None, outputs: Arrays | None
    ) -> dict[str, NDArray]:
        """With all checks, and plans by shape."""
        arrays = []
        for (name, dtype), p in zip(self._inputs, self.artifact.kernel.inputs, strict=True):
            a = inputs.get(name)
            if a.__class__ is not np.ndarray or a.dtype != dtype or not a.flags.c_contiguous:
                a = self._checked(p, a)
            arrays.append(a)
        plan = self._plan(tuple(a.shape for a in arrays), dims)
        results = self._results(plan, outputs, arrays)
        slots = [a.ctypes.data for a in (*arrays, *results.values())]
        cell = np.zeros(4, np.int64)
        if self._checked_build:
            slots.append(cell.ctypes.data)
        slots += [*plan.dims, self.threads]
        self._function((ctypes.c_int64 * len(slots))(*slots))
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
            plan = self._made(shapes, bound, dims)
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = plan
        plan.calls += 1
        if plan.calls == 2 and not self._checked_build:
            plan.direct = direct(self._entry, plan.specs, (*plan.dims, self.threads))
        self._last = plan
        return plan

    def _made(
        self, shapes: tuple[tuple[int, ...], ...], bound: Mapping[str, int], given: Any
    ) -> CallPlan:
        kernel = self.artifact.kernel
        made = output_shapes(kernel, bound)
        specs = [Spec(t, shape, False) for (_, t), shape in zip(self._inputs, shapes, strict=True)]
        specs += [Spec(t, made[name], True) for name, t in self._outputs]
        dims = tuple(bound[d.name] for d in kernel.dims)
        return CallPlan(dims, tuple(specs), dict(given) if given is not None else None)

    def _results(
        self, plan: CallPlan, given: Arrays | None, arrays: list[NDArray]
    ) -> dict[str, NDArray]:
        if given is None:
            return dict(zip(self._out_names, plan.allocate(), strict=True))
        results: dict[str, NDArray] = {}
        for p, spec in zip(self.artifact.kernel.outputs, plan.outputs, strict=True):
            a, shape = self._checked(p, given.get(p.name)), spec.shape
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
