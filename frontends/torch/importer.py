"""A PyTorch model as a KIR file: a graph, its kernels, and the weights apart."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from kir.errors import FileError, KirError, UnsupportedError, UsageError
from kir.frontends.torch.dynamo import _taken_apart, decompositions
from kir.frontends.torch.lower import KIR_DTYPES, SEED, Lowered, Result, has_row, lower
from kir.frontends.torch.sharing import renamed_graph
from kir.ir import Module
from kir.syntax import format_module
from kir.syntax.scope import RESERVED

TORCH_DTYPES = {ours.name: theirs for theirs, ours in KIR_DTYPES.items()}


@dataclass(frozen=True)
class Imported:
    """`text`: a KIR file with one graph; `weights`: those of its inputs that the model holds;
    `inputs`: the others."""

    text: str
    weights: Mapping[str, torch.Tensor]
    inputs: tuple[str, ...]


def example(type_: str) -> torch.Tensor:
    """A tensor of zeros for `f32[8, 64]`; `f32` or `f32[]` is a scalar. UsageError for no type."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*((?:\d{1,9}\s*,?\s*)*)\])?\s*", type_)
    if match is None or match[1] not in TORCH_DTYPES:
        raise UsageError(
            f"`{type_}` is no type of a tensor",
            hint="write --input f32[8, 64]; dtypes: " + ", ".join(TORCH_DTYPES),
        )
    shape = [int(n) for n in re.findall(r"\d+", match[2] or "")]
    return torch.zeros(shape, dtype=TORCH_DTYPES[match[1]])


def load_model(reference: str) -> torch.nn.Module:
    """The module that `FILE.py:NAME` names: a class that needs no arguments, a function that gives
    a module, or a module. Runs the file, which is Python.

    FileError where there is no such file, UsageError where it holds no such model or fails.
    """
    path, _, name = reference.rpartition(":")
    if not path or not name:
        raise UsageError(f"`{reference}` names no model", hint="write MODEL.py:Class")
    if not Path(path).is_file():
        raise FileError(f"there is no file {path}", hint="write MODEL.py:Class")
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise FileError(f"{path} is no Python file", hint="its name ends in .py")
    space = module_from_spec(spec)
    with _beside(path), _of_the_user(path, "failed"):
        spec.loader.exec_module(space)
        found = getattr(space, name, None)
        if callable(found) and not isinstance(found, torch.nn.Module):
            found = found()
    if not isinstance(found, torch.nn.Module):
        known = [n for n, v in vars(space).items() if _is_model(v, space.__name__)]
        what = "is no model" if hasattr(space, name) else "is not there"
        raise UsageError(f"`{name}` of {path} {what}",
                         hint="a class of torch.nn.Module without arguments, or a function that "
                         "gives a module; there is: " + (", ".join(known) or "none"))  # fmt: skip
    return found


def _is_model(value: Any, module: str) -> bool:
    if isinstance(value, type):
        return issubclass(value, torch.nn.Module) and value.__module__ == module
    return isinstance(value, torch.nn.Module)


@contextmanager
def _beside(path: str) -> Iterator[None]:
    """Modules in the file's folder can be imported, as when Python runs it."""
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def _of_the_user(path: str, what: str) -> Iterator[None]:
    """Errors of the user's own Python, whatever they are, as a UsageError with its line."""
    try:
        yield
    except KirError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the user's own file raises
        line = ""
        trace = error.__traceback__
        while trace is not None:
            if Path(trace.tb_frame.f_code.co_filename).name == Path(path).name:
                line = f", line {trace.tb_lineno}"
            trace = trace.tb_next
        said = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(f"{path}{line}: {what}: {type(error).__name__}: {said}") from None


def import_model(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    name: str = "model",
    origin: str = "a PyTorch model",
) -> Imported:
    """The model in evaluation mode, for inputs of these shapes and dtypes, by torch.export.

    UnsupportedError for an operator that KIR does not compile, with its dtypes and its line;
    UsageError where torch.export cannot trace the model.
    """
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of its own parts
        with _of_the_user(origin, "torch.export does not trace it"), _taken_apart():
            program = torch.export.export(model, tuple(inputs)).run_decompositions(_table())
    try:
        lowered = lower(program.graph, plain=True)
    except UnsupportedError as error:
        raise UnsupportedError(error.message, hint="rewrite this part of the model with operators "
                               "that docs/torch-operators.md lists") from None  # fmt: skip
    return _written(program, lowered, name, origin)


def _table() -> Any:
    """How torch.export takes apart what the tables have no row for."""
    table = torch.export.default_decompositions()
    table.update(decompositions())
    for operator in [op for op in table.keys() if has_row(op)]:  # noqa: SIM118 - torch's own table
        table.pop(operator)
    return table


def _written(program: Any, lowered: Lowered, name: str, origin: str) -> Imported:
    values = {**program.state_dict, **program.constants}
    names: dict[str, str] = {}
    weights: dict[str, torch.Tensor] = {}
    taken = {SEED}
    tensors = [s for s in program.graph_signature.input_specs if hasattr(s.arg, "name")]
    for place, given in zip(lowered.inputs, tensors):
        mine = given.kind == InputKind.USER_INPUT
        names[place.name] = _name(given.arg.name if mine else str(given.target), taken)
        if not mine:
            weights[names[place.name]] = _stored(values[given.target])
    for place, constant in zip(lowered.inputs[len(tensors) :], lowered.constants, strict=True):
        names[place.name] = _name("constant", taken)
        weights[names[place.name]] = _stored(constant)
    for result, made in zip(lowered.results, program.graph_signature.output_specs, strict=True):
        if isinstance(result, Result) and lowered.outputs[result.number].name not in names:
            place = lowered.outputs[result.number]
            wanted = "y" if made.kind == OutputKind.USER_OUTPUT else f"new_{made.target}"
            names[place.name] = _name(wanted, taken)
    graph = lowered.module.graphs()["main"]
    for call in graph.calls:
        for result_name in call.results:
            if result_name not in names:
                names[result_name] = _name(result_name, taken)
    whole = renamed_graph(graph, _name(name, set()), names)
    held = set(weights)
    read = {a for c in whole.calls for a in c.args}
    weights = {n: w for n, w in weights.items() if n in read}  # BatchNorm counts batches in one
    inputs = tuple(p for p in whole.inputs if p.name in weights or p.name not in held)
    whole = replace(whole, inputs=inputs)
    module = Module((*lowered.module.kernels().values(), whole))
    head = f"# {origin} in evaluation mode, by torch.export\n\n"
    free = tuple(p.name for p in inputs if p.name not in weights)
    return Imported(head + format_module(module), weights, free)


def _name(wanted: str, taken: set[str]) -> str:
    """A name of the language that is not taken yet; it is then."""
    plain = re.sub(r"\W", "_", wanted, flags=re.ASCII).strip("_") or "t"
    if plain[0].isdigit() or plain in RESERVED:
        plain = f"t_{plain}"
    found, count = plain, 1
    while found in taken:
        found, count = f"{plain}_{count}", count + 1
    taken.add(found)
    return found


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().clone()


def takes(model: torch.nn.Module) -> str:
    """The parameters of its forward, for messages."""
    forward: Callable[..., Any] = model.forward
    return ", ".join(inspect.signature(forward).parameters)
