"""Running a compiled kernel on NumPy arrays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact, Executable
from kir.backends.cpu.call import Call, Spec, check_threads
from kir.backends.cpu.native import load_code
from kir.errors import EvaluationError, InputDataError
from kir.ir import Graph, Kernel, Param, Read, Store, walk
from kir.specialise import infer_dims, output_shapes
from kir.syntax import format_expr

NDArray = np.ndarray[Any, Any]
CALLS_KEPT = 64


@dataclass
class CpuExecutable(Executable):
    """A kernel in this process.

    `threads` = 0 leaves the number to OMP_NUM_THREADS (or all processors); a loop with little work
    uses fewer. Below 0, exactly that many are used, however little the work.
    """

    artifact: Artifact
    threads: int = 0
    _calls: OrderedDict[Any, Call] = field(default_factory=OrderedDict)
    _last: tuple[Any, Call] | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        obj = self.artifact.stages["obj"]
        assert isinstance(obj, bytes)
        self._code = load_code(obj)
        self._symbol = self.artifact.launch["packed"]
        self._checked_build = bool(self.artifact.launch["checked"])
        self.item: Kernel | Graph = self.artifact.kernel
        self._inputs = [(p.name, p.type.numpy) for p in self.item.inputs]
        self._outputs = [(p.name, p.type.numpy) for p in self.item.outputs]
        self._in_names = [p.name for p in self.item.inputs]
        self._out_names = [p.name for p in self.item.outputs]

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, NDArray]:
        """Run. InputDataError for arrays of a wrong dtype, shape or layout, ConstraintError for
        dims that contradict one another or break a constraint; EvaluationError where the build is
        checked and an index that is read from a tensor is out of range."""
        if self._last is not None and self._last[0] == dims:
            call = self._last[1]
            if call.direct is not None:
                try:
                    arrays = [inputs[n] for n in self._in_names]
                    made = [outputs[n] for n in self._out_names] if outputs else call.allocate()
                except KeyError:
                    return self._slowly(inputs, dims, outputs)
                if call.direct(*arrays, *made):
                    return dict(zip(self._out_names, made))
        return self._slowly(inputs, dims, outputs)

    def _slowly(
        self, inputs: Arrays, dims: Mapping[str, int] | None, outputs: Arrays | None
    ) -> dict[str, NDArray]:
        """With all checks, and calls by shape."""
        arrays = []
        for (name, dtype), p in zip(self._inputs, self.item.inputs, strict=True):
            a = inputs.get(name)
            if a.__class__ is not np.ndarray or a.dtype != dtype or not a.flags.c_contiguous:
                a = self._checked(p, a)
            arrays.append(a)
        call = self.call_for(tuple(a.shape for a in arrays), dims)
        results = self._results(call, outputs, arrays)
        self._last = (dict(dims) if dims is not None else None, call)
        if not self._checked_build:
            call.run([*arrays, *results.values()])
            return results
        cell = np.zeros(4, np.int64)
        call.run([*arrays, *results.values()], cell)
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

    def call_for(
        self, shapes: Sequence[tuple[int, ...]], dims: Mapping[str, int] | None = None
    ) -> Call:
        """The call for inputs of these shapes; errors as those of a call."""
        key = (tuple(shapes), tuple(sorted(dims.items())) if dims else ())
        call = self._calls.get(key)
        if call is not None:
            return call
        item = self.item
        named = dict(zip(self._in_names, shapes, strict=True))
        known = {d.name for d in item.dims}
        given = {n: v for n, v in (dims or {}).items() if n in known}
        bound = infer_dims(item, named, given)
        made = output_shapes(item, bound)
        specs = [Spec(t, shape, False) for (_, t), shape in zip(self._inputs, shapes, strict=True)]
        specs += [Spec(t, made[name], True) for name, t in self._outputs]
        values = [bound[d.name] for d in item.dims]
        call = Call(self._code, self._symbol, specs, values, self.threads)
        self._calls[key] = call
        if len(self._calls) > CALLS_KEPT:
            self._calls.popitem(last=False)
        return call

    def _results(
        self, call: Call, given: Arrays | None, arrays: list[NDArray]
    ) -> dict[str, NDArray]:
        if given is None:
            return dict(zip(self._out_names, call.allocate(), strict=True))
        results: dict[str, NDArray] = {}
        for p, spec in zip(self.item.outputs, call.outputs, strict=True):
            a = self._checked(p, given.get(p.name))
            if a.shape != spec.shape or not a.flags.writeable:
                shaped = a.shape == spec.shape
                why = "is read-only" if shaped else f"has shape {a.shape}, not {spec.shape}"
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
            kernel=self.item,
            node=p,
        )
