"""Carrying out a host plan: allocations, loops and launches, on whatever device does them.

Nothing here knows KIR's IR or Triton: a plan is JSON, and the device is a `Device`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Device(Protocol):
    def alloc(self, dtype: str, shape: tuple[int, ...], fill: str | None) -> Any:
        """A tensor of a KIR dtype; `fill` is the repr of the value of every element."""

    def launch(self, function: str, grid: int, arguments: list[Any]) -> None:
        """Run a function over `grid` programs. Arguments are tensors and ints."""


def evaluate(expr: Any, values: Mapping[str, int]) -> int:
    """The value of a plan's expression."""
    if isinstance(expr, int):
        return expr
    if isinstance(expr, str):
        return values[expr]
    name, *args = expr
    if name == "select":
        return evaluate(args[1] if evaluate(args[0], values) else args[2], values)
    result: int = _OPS[name](*(evaluate(a, values) for a in args))
    return result


def _tdiv(a: int, b: int) -> int:
    q = abs(a) // abs(b) if b else 0
    return q if (a < 0) == (b < 0) else -q


_OPS: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "cdiv": lambda a, b: -(-a // b) if b else 0,
    "tdiv": _tdiv,
    "trem": lambda a, b: a - _tdiv(a, b) * b if b else 0,
    "max": max,
    "min": min,
    "eq": lambda a, b: int(a == b),
    "ne": lambda a, b: int(a != b),
    "lt": lambda a, b: int(a < b),
    "le": lambda a, b: int(a <= b),
    "gt": lambda a, b: int(a > b),
    "ge": lambda a, b: int(a >= b),
    "and": lambda a, b: int(bool(a) and bool(b)),
    "or": lambda a, b: int(bool(a) or bool(b)),
    "not": lambda a: int(not a),
}


def number(text: str) -> bool | int | float:
    """The value of an element, from its repr."""
    if text in ("True", "False"):
        return text == "True"
    return float(text) if any(c in text for c in ".einf") else int(text)


def shape_of(tensor: Mapping[str, Any], dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(e, dims) for e in tensor["shape"])


def run_plan(
    plan: Mapping[str, Any], tensors: Mapping[str, Any], dims: Mapping[str, int], device: Device
) -> None:
    """Run the steps of a plan on tensors by name (inputs, and outputs to be written)."""
    values = dict(dims)
    live = dict(tensors)

    def go(steps: list[Mapping[str, Any]]) -> None:
        for step in steps:
            kind = step["op"]
            if kind == "alloc":
                live[step["name"]] = device.alloc(
                    step["dtype"], shape_of(step, values), step["fill"]
                )
            elif kind == "launch":
                grid = evaluate(step["grid"], values)
                if grid > 0:
                    name = step["function"]
                    device.launch(name, grid, _arguments(plan, name, live, values))
            elif kind == "if":
                if evaluate(step["condition"], values):
                    go(step["body"])
            elif kind == "for":
                for index in range(evaluate(step["extent"], values)):
                    values[step["index"]] = index
                    go(step["body"])
            else:
                raise ValueError(f"unknown step {kind!r}")

    go(plan["steps"])


def _arguments(
    plan: Mapping[str, Any], function: str, live: Mapping[str, Any], values: Mapping[str, int]
) -> list[Any]:
    arguments: list[Any] = []
    for a in plan["functions"][function]["arguments"]:
        if a["kind"] == "tensor":
            arguments.append(live[a["name"]])
        elif a["kind"] == "scratch":
            arguments.append(live[f"{function}.{a['name']}"])
        else:
            arguments.append(values[a["name"]])
    return arguments
