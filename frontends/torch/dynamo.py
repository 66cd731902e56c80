"""`torch.compile(model, backend="kir")`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch._dynamo.config
from torch._decomp import decomposition_table
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn.attention import SDPBackend, sdpa_kernel

import kir
from kir.errors import UnsupportedError, UsageError
from kir.frontends.torch.checks import Check, index_checks
from kir.frontends.torch.decompositions import DECOMPOSITIONS
from kir.frontends.torch.dynamic import Dynamic, is_open
from kir.frontends.torch.lower import (
    Lowered,
    Place,
    Result,
    as_array,
    has_row,
    is_supported,
    lower,
)
from kir.frontends.torch.schedules import save, scheduled

NDArray = np.ndarray[Any, Any]
_log = logging.getLogger("kir.torch")
OPTIONS = ("target", "strict", "threads", "store", "schedule", "save")

# Dynamo leaves recurrent layers to eager unless told otherwise, and does not say so. This module
# is imported when someone asks for the backend, before anything of theirs is captured.
torch._dynamo.config.allow_rnn = True


@dataclass(frozen=True)
class Options:
    """`target`: a KIR target; `strict`: raise on what KIR does not compile; `threads`: 0 for the
    environment's number; `store`: the URL of searches whose schedules are used for the kernels
    that were tuned (`kir tune`), the default ones for the others; `schedule`: a file of schedules
    of kernels, which come before these, or `none`; `save`: a folder that graphs are written to."""

    target: str = "cpu"
    strict: bool = False
    threads: int = 0
    store: str | None = None
    schedule: str | None = None
    save: str | None = None


def backend(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """What torch.compile calls for each graph that it captures; see `Options`.

    UsageError for an unknown option, UnsupportedError under `strict`.
    """
    given = dict(options or {})
    for name in given:
        if name not in OPTIONS:
            raise UsageError(f"the backend `kir` has no option `{name}`",
                             hint="it has: " + ", ".join(OPTIONS))  # fmt: skip
    chosen = Options(**given)

    def compiler(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        return make_boxed_func(compiled(graph, chosen))

    with _taken_apart():
        traced = aot_autograd(fw_compiler=compiler, decompositions=decompositions())
        made: Callable[..., Any] = traced(module, inputs)
    return made


@contextmanager
def _taken_apart() -> Iterator[None]:
    """While a graph is traced PyTorch chooses none of its own fused kernels, forward or backward:
    attention and recurrent layers are seen as what they compute."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def decompositions() -> dict[Any, Any]:
    """How what the tables have no row for is taken apart, by torch or here."""
    return {**{op: f for op, f in decomposition_table.items() if not has_row(op)}, **DECOMPOSITIONS}


def compiled(module: torch.fx.GraphModule, options: Options) -> Callable[..., Any]:
    """A graph of ATen operators as a function of tensors. Where not all is supported and it need
    not be, the parts that are."""
    if is_open(module.graph):
        return Dynamic(module, options)
    nodes = [n for n in module.graph.nodes if n.op == "call_function"]
    if options.strict or all(is_supported(n) for n in nodes):
        try:
            return _Program(lower(module.graph), options, index_checks(module.graph))
        except UnsupportedError as error:
            if options.strict:
                raise
            _log.info("PyTorch runs a part of %d operators: %s", len(nodes), error.message)
            eager: Callable[..., Any] = module
            return eager
    from kir.frontends.torch.partition import partitioned

    return partitioned(module, options)


class _Program:
    """A lowered graph, compiled: called with torch's tensors."""

    def __init__(self, lowered: Lowered, options: Options, checks: Sequence[Check] = ()) -> None:
        self.lowered, self.checks = lowered, checks
        self.function: Callable[..., Any] | None = None
        self.held: dict[int, tuple[torch.Tensor, int, NDArray]] = {}
        """The arrays of parameters, by their number, which are the same at each call."""
        self.plain = not any(
            not isinstance(r, Result) or r.is_input or r.views for r in lowered.results
        )
        self.plain &= [r.number for r in lowered.results if isinstance(r, Result)] == list(
            range(len(lowered.outputs))
        )
        self.dense = all(p.meta.dense for p in lowered.outputs)
        if lowered.outputs:
            if options.save is not None:
                save(lowered.module, options.save)
            self.function = kir.compile(
                scheduled(lowered.module, options), "main", target=options.target,
                schedule="none" if options.schedule == "none" else None, threads=options.threads,
            )  # fmt: skip

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        tensors += self.lowered.constants
        made = [_allocated(p) for p in self.lowered.outputs]
        if self.function is not None:
            places = self.lowered.inputs
            arrays = [
                self._parameter(k, t) if isinstance(t, torch.nn.Parameter) else _array(t, places[k])
                for k, t in enumerate(tensors)
            ]
            for check in self.checks:
                check(arrays[check.number])
            if self.lowered.draws:
                arrays.append(_seed())
            self.function(*arrays, out=[a for _, a in made])
        if self.plain and self.dense:
            return tuple([t for t, _ in made])
        for k, place in enumerate(self.lowered.outputs):
            if not place.meta.dense:  # eager leaves gaps: so do we
                gaps = torch.empty_strided(place.meta.shape, place.meta.strides,
                                           dtype=place.meta.torch_dtype)  # fmt: skip
                made[k] = gaps.copy_(made[k][0]), made[k][1]
        return tuple(self._result(r, tensors, made) for r in self.lowered.results)

    def _parameter(self, k: int, tensor: torch.nn.Parameter) -> NDArray:
        """The array that it had before, where its memory is the same and is not copied."""
        found = self.held.get(k)
        pointer = tensor.data_ptr()
        if found is not None and found[0] is tensor and found[1] == pointer:
            return found[2]
        array = _array(tensor, self.lowered.inputs[k])
        if array.ctypes.data == pointer:
            self.held[k] = tensor, pointer, array
        return array

    @staticmethod
    def _result(
        result: Result | int | float | None,
        inputs: Sequence[torch.Tensor],
        made: Sequence[tuple[Any, Any]],
    ) -> Any:
        if not isinstance(result, Result):
            return result
        found = inputs[result.number] if result.is_input else made[result.number][0]
        for operator, args in result.views:
            found = operator(found, *args)
        return found


def _seed() -> NDArray:
    """A u64 of torch's default generator."""
    drawn: NDArray = torch.empty((), dtype=torch.int64).random_().numpy().view(np.uint64)
    return drawn


def _allocated(place: Place) -> tuple[torch.Tensor, NDArray]:
    """A tensor with torch's shape and strides, and the array under it."""
    meta = place.meta
    if meta.in_order:
        tensor = torch.empty(meta.shape, dtype=meta.torch_dtype)
        return tensor, _numpy(tensor, place)
    memory = torch.empty([meta.shape[d] for d in meta.order], dtype=meta.torch_dtype)
    back = [meta.order.index(d) for d in range(len(meta.order))]
    return memory.permute(back), _numpy(memory, place)


def _array(tensor: torch.Tensor, place: Place) -> NDArray:
    """The array of a tensor, which is copied where its memory is not as it was when compiled."""
    memory = tensor.detach()
    if not place.meta.in_order:
        memory = memory.permute(place.meta.order)
    return _numpy(memory if memory.is_contiguous() else memory.contiguous(), place)


def _numpy(memory: torch.Tensor, place: Place) -> NDArray:
    array: NDArray = as_array(memory)
    return array if array.shape == place.array else array.reshape(place.array)
