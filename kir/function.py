"""Kernels as Python functions: `kir.compile("softmax.kir")(x)`.

    >>> f = kir.compile("matmul.kir")                 # a schedule and code for each shape it meets
    >>> c = f(a, b)
    >>> g = kir.compile("matmul.kir", dynamic=("M",)) # one for all M
    >>> f(a, b, out=c)                                # into an array that is there
    >>> h = kir.compile("conv.kir", dims={"stride": 2}, threads=4)

On a target with a cache (the cpu) what was compiled by any process runs again without being parsed,
planned or compiled.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kir.errors import InputDataError, Source, UsageError
from kir.source import load

if TYPE_CHECKING:
    from kir.backend import Executable
    from kir.ir import Graph, Kernel, Module

NDArray = np.ndarray[Any, Any]
Ready = Callable[[list[NDArray], list[NDArray] | None], list[NDArray]]
QUICK = {("cpu", None): "kir.backends.cpu.quick", ("cpu", "llvm"): "kir.backends.cpu.quick"}
"""Where a target keeps calls on disk: a module with `recall`, `remember`, `recall_call`,
`remember_call`."""
RECORDS_KEPT = 64
"""Calls of one function that it puts on disk: dims that never repeat must not fill the cache."""


def compile(
    source: str | Path | Source | Kernel | Module,
    kernel: str | None = None,
    *,
    target: str = "cpu",
    via: str | None = None,
    arch: str | None = None,
    dynamic: bool | Iterable[str] = False,
    dims: Mapping[str, int] | None = None,
    schedule: str | None = None,
    threads: int = 0,
    debug: bool = False,
    keep: int = 64,
) -> Function:
    """A function of NumPy arrays.

    `source` is a file, its text (anything with a `{`), or what `kir.load`, `kir.parse` and
    `kir.parse_kernel` give; `kernel` names one where there are several. A new shape compiles anew,
    with a schedule made for it, unless the dims that differ are among `dynamic` (True: all), which
    stay symbolic; the `keep` specialisations used last are kept. `dims` fixes dims and parameters
    that no input's shape gives. `schedule` is as for `kir lower`; `threads` = 0 leaves their
    number to OMP_NUM_THREADS. With `debug`, indices read from tensors are checked.

    Raises FileError, ParseError and the other errors of a wrong text, UsageError for a wrong
    option.
    """
    return Function(
        _text_of(source), source, kernel, (target, via, arch), _dynamic(dynamic), dict(dims or {}),
        schedule, threads, debug, keep,
    )  # fmt: skip


def _dynamic(chosen: bool | Iterable[str]) -> tuple[str, ...] | None:
    """None: all dims."""
    if isinstance(chosen, bool):
        return None if chosen else ()
    return tuple(sorted((chosen,) if isinstance(chosen, str) else chosen))


def _text_of(source: Any) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, str) and "{" in source:
        return Source("<text>", source)
    if isinstance(source, str | Path):
        return load(source)
    from kir.ir import Kernel, Module
    from kir.syntax import format_kernel, format_module

    if isinstance(source, Kernel):
        return Source(source.name, format_kernel(source))
    if isinstance(source, Module):
        return Source("<module>", format_module(source))
    raise UsageError(
        f"a {type(source).__name__} is no kernel",
        hint="give a file, its text, a kernel or a module (for a graph, with its kernels)",
    )


class Function:
    """What `kir.compile` gives. Safe to call from several threads at a time."""

    def __init__(
        self, text: Source, source: Any, kernel: str | None,
        road: tuple[str, str | None, str | None], dynamic: tuple[str, ...] | None,
        dims: dict[str, int], schedule: str | None, threads: int, debug: bool, keep: int,
    ) -> None:  # fmt: skip
        self._text, self._source, self._kernel, self._road = text, source, kernel, road
        self._dynamic, self._dims, self._schedule = dynamic, dims, schedule
        self._threads, self._debug, self._keep = threads, debug, max(1, keep)
        self._made: OrderedDict[Any, Executable] = OrderedDict()
        self._calls: OrderedDict[Any, Any] = OrderedDict()
        self._last: Any = None
        self._records = 0
        self._parsed: tuple[Kernel | Graph, Module] | None = None
        self._quick: Any = None
        if not debug and QUICK.get(road[:2]):
            self._quick = importlib.import_module(QUICK[road[:2]])
        self._question = self._identity()
        self._read_signature()

    # --- what is called

    def _identity(self) -> dict[str, Any]:
        choice = self._schedule
        if choice is not None and Path(choice).is_file():
            choice = hashlib.sha256(Path(choice).read_bytes()).hexdigest()
        return {
            "text": hashlib.sha256(self._text.text.encode()).hexdigest(), "kernel": self._kernel,
            "road": self._road, "dynamic": self._dynamic, "dims": self._dims, "schedule": choice,
        }  # fmt: skip

    def _read_signature(self) -> None:
        """Names, dtypes and dims, from the cache or from the text, which must be right then."""
        found = self._quick.recall({"ask": "signature", **self._question}) if self._quick else None
        if found is None:
            item, _ = self._item()
            found = {
                "name": item.name,
                "inputs": [(p.name, p.type.numpy.name) for p in item.inputs],
                "outputs": [p.name for p in item.outputs],
                "dims": [d.name for d in item.dims],
            }
            self._check_options(found)
            if self._quick:
                self._quick.remember({"ask": "signature", **self._question}, found)
        self.__name__: str = found["name"]
        self._dim_names: set[str] = set(found["dims"])
        self._input_names: list[str] = [name for name, _ in found["inputs"]]
        self._input_dtypes: list[str] = [dtype for _, dtype in found["inputs"]]
        self._output_names: list[str] = list(found["outputs"])

    def _check_options(self, found: Mapping[str, Any]) -> None:
        from kir.pipeline import Target

        name, via, arch = self._road
        assert Target(name, via, arch).chip  # which there must be
        known = ", ".join(found["dims"]) or "none"
        for name in (*self._dims, *(self._dynamic or ())):
            if name not in found["dims"]:
                raise UsageError(f"`{found['name']}` has no dim `{name}`",
                                 hint=f"its dims are: {known}")  # fmt: skip
        fixed = {d.name for d in self._item()[0].dims if d.default is not None}
        for name in fixed & {*(self._dynamic or ())}:
            raise UsageError(f"`{name}` is a parameter, which is always a constant",
                             hint="leave it out of `dynamic`")  # fmt: skip

    def _item(self) -> tuple[Kernel | Graph, Module]:
        if self._parsed is None:
            from kir.ir import Kernel, Module
            from kir.syntax import parse

            if isinstance(self._source, Kernel):
                module = Module((self._source,))
            elif isinstance(self._source, Module):
                module = self._source
            else:
                module = parse(self._text)
            self._parsed = _choose(module, self._kernel), module
        return self._parsed

    def __repr__(self) -> str:
        takes = ", ".join(f"{n}: {t}" for n, t in zip(self._input_names, self._input_dtypes))
        return f"<kir function {self.__name__}({takes}) -> ({', '.join(self._output_names)})>"

    # --- calls

    def __call__(
        self, *args: NDArray, out: NDArray | Sequence[NDArray] | None = None, **named: Any
    ) -> NDArray | tuple[NDArray, ...]:
        """The output, or a tuple of them. Inputs come in the order of the declaration or by name,
        dims that no shape gives by name. `out` is an array to write into, or one for each output.

        Raises InputDataError for arrays of a wrong number, dtype, shape or layout, ConstraintError
        for dims that contradict one another or break a `where`.
        """
        last = self._last
        if last is not None and not named:
            made = (
                last.allocate() if out is None else (out,) if isinstance(out, np.ndarray) else out
            )
            if last.direct(*args, *made):
                return made[0] if len(made) == 1 else tuple(made)
        arrays, dims = self._arguments(args, named)
        outputs = None
        if out is not None:
            outputs = [out] if isinstance(out, np.ndarray) else list(out)
            if len(outputs) != len(self._output_names):
                raise InputDataError(f"`{self.__name__}` has {len(self._output_names)} outputs, "
                                     f"and `out` gives {len(outputs)}")  # fmt: skip
        results = self._call_for(arrays, dims)(arrays, outputs)
        return results[0] if len(results) == 1 else tuple(results)

    def _arguments(
        self, args: tuple[NDArray, ...], named: dict[str, Any]
    ) -> tuple[list[NDArray], dict[str, int]]:
        names = self._input_names
        takes = f"`{self.__name__}` takes {', '.join(names) or 'no inputs'}"
        if len(args) > len(names):
            raise InputDataError(f"{takes}; given are {len(args)} arrays")
        given = dict(zip(names, args))
        dims = dict(self._dims)
        for name, value in named.items():
            if name in self._dim_names:
                dims[name] = value
            elif name in given or name not in names:
                why = "is given twice" if name in given else "is none of its inputs or dims"
                raise InputDataError(f"{takes}; `{name}` {why}")
            else:
                given[name] = value
        missing = [n for n in names if n not in given]
        if missing:
            raise InputDataError(f"{takes}; `{missing[0]}` is not given")
        for name in names:
            if not isinstance(given[name], np.ndarray):
                kind = type(given[name]).__name__
                raise InputDataError(f"`{name}` is a {kind}, not a NumPy array",
                                     hint="`np.asarray` makes one")  # fmt: skip
        return [given[n] for n in names], dims

    def _call_for(self, arrays: list[NDArray], dims: dict[str, int]) -> Ready:
        key = tuple((a.shape, a.dtype) for a in arrays), tuple(sorted(dims.items()))
        call: Ready | None = self._calls.get(key)
        if call is None:
            call = self._recalled(arrays, dims) or self._compiled(arrays, dims)
            self._calls[key] = call
            while len(self._calls) > self._keep:
                self._calls.popitem(last=False)
        else:
            self._calls.move_to_end(key)
        return call

    def _recalled(self, arrays: list[NDArray], dims: dict[str, int]) -> _Ready | None:
        """What some process compiled for such arrays before."""
        if not self._quick:
            return None
        dtypes = [self._quick.dtype_of(name) for name in self._input_dtypes]
        if [a.dtype for a in arrays] != dtypes:
            return None  # an error, which the compiled kernel describes
        specs = [self._quick.Spec(t, a.shape, False) for t, a in zip(dtypes, arrays)]
        call = self._quick.recall_call(self._asked(arrays, dims), specs, self._threads)
        return _Ready(self, call, dims) if call is not None else None

    def _asked(self, arrays: list[NDArray], dims: dict[str, int]) -> dict[str, Any]:
        given = {name: int(value) for name, value in dims.items()}
        return {"ask": "call", **self._question, "shapes": [a.shape for a in arrays],
                "given": given}  # fmt: skip

    def _compiled(self, arrays: list[NDArray], dims: dict[str, int]) -> Ready:
        executable, free = self._executable(arrays, dims)
        for_shapes: Any = executable
        if not self._quick or not hasattr(executable, "call_for"):
            return _Plain(self, executable, free)  # another target; a graph called by parts
        call = for_shapes.call_for([a.shape for a in arrays], free)
        if self._records < RECORDS_KEPT:
            self._records += 1
            obj = for_shapes.artifact.stages["obj"]
            self._quick.remember_call(self._asked(arrays, dims), call, obj)
        return _Ready(self, call, dims)

    def _executable(
        self, arrays: list[NDArray], dims: dict[str, int]
    ) -> tuple[Executable, dict[str, int]]:
        """The specialisation for a call, and the dims that it leaves open."""
        from kir.pipeline import Target
        from kir.pipeline import compile as compile_item
        from kir.specialise import infer_dims

        item, module = self._item()
        shapes = {n: a.shape for n, a in zip(self._input_names, arrays)}
        bound = infer_dims(item, shapes, dims)
        symbolic = {
            d.name
            for d in item.dims
            if d.default is None
            and d.name not in self._dims
            and (self._dynamic is None or d.name in self._dynamic)
        }
        fixed = {n: v for n, v in bound.items() if n not in symbolic}
        key = tuple(sorted(fixed.items()))
        made = self._made.get(key)
        if made is None:
            name, via, arch = self._road
            goal = Target(name, via, arch, self._debug)
            made = compile_item(item, goal, fixed, self._schedule, module, threads=self._threads)
            self._made[key] = made
            while len(self._made) > self._keep:
                self._made.popitem(last=False)
        return made, {n: bound[n] for n in symbolic}


class _Ready:
    """A call on known shapes, of a target that gives such (the cpu)."""

    def __init__(self, owner: Function, call: Any, dims: dict[str, int]) -> None:
        self.owner, self.call, self.dims = owner, call, dims

    def __call__(self, arrays: list[NDArray], outputs: list[NDArray] | None) -> list[NDArray]:
        call = self.call
        made: list[NDArray] = call.allocate() if outputs is None else outputs
        if not call.fits((*arrays, *made)):
            executable, free = self.owner._executable(arrays, self.dims)
            return _Plain(self.owner, executable, free)(arrays, outputs)  # says what is wrong
        call.run((*arrays, *made))
        if call.direct is not None and self.dims == self.owner._dims:
            self.owner._last = call
        return made


class _Plain:
    """A call by names, on any target."""

    def __init__(self, owner: Function, executable: Executable, dims: dict[str, int]) -> None:
        self.owner, self.executable, self.dims = owner, executable, dims

    def __call__(self, arrays: list[NDArray], outputs: list[NDArray] | None) -> list[NDArray]:
        owner = self.owner
        given = None if outputs is None else dict(zip(owner._output_names, outputs))
        made = self.executable(dict(zip(owner._input_names, arrays)), self.dims, given)
        return [made[n] for n in owner._output_names]


def _choose(module: Module, name: str | None) -> Kernel | Graph:
    """The kernel or graph asked for; without a name the only one, or the only graph."""
    items: dict[str, Kernel | Graph] = {**module.kernels(), **module.graphs()}
    if name is None and len(items) != 1:
        items = {**module.graphs()} if len(module.graphs()) == 1 else items
    if name is None and len(items) == 1:
        return next(iter(items.values()))
    if name not in items:
        raise UsageError(
            f"there is no kernel `{name}`" if name else "it is not said which kernel is meant",
            hint="there is: " + (", ".join(items) or "none"),
        )
    return items[name]
