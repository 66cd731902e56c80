"""Scheduled IR to CuTe DSL source: each launch as a kernel function, and how to launch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kir.backends.cute.expressions import HELPERS, SCALARS, STORAGE
from kir.backends.cute.nests import refuse
from kir.backends.cute.program import Program, as_json
from kir.backends.cute.writer import Names
from kir.dtypes import i64
from kir.errors import UnsupportedError
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    If,
    Kernel,
    Loop,
    Param,
    Reduce,
    Stmt,
    Store,
    Var,
    walk,
)
from kir.ops import identity, op
from kir.simplify import simplify


@dataclass(frozen=True)
class Generated:
    """The source, and for each launch its plain description; `signature` is what the host
    function takes, as (name, DSL type, is a pointer)."""

    source: str
    host: str
    signature: tuple[tuple[str, str, bool], ...]
    launch: Mapping[str, Any]


def generate(kernel: Kernel) -> Generated:
    """CuTe DSL source of scheduled IR; UnsupportedError names what it cannot express."""
    for node in (x for s in kernel.body for x in walk(s)):
        if isinstance(node, Define | Reduce):
            raise refuse(
                node, "the kernel still has definitions", "apply the rewrite `loops` first"
            )
    temporaries, programs = _programs(kernel)
    tensors: dict[str, Param | Buffer] = {p.name: p for p in kernel.params}
    tensors |= {b.name: b for b in temporaries}
    for t in tensors.values():
        if t.type not in SCALARS:
            raise UnsupportedError(
                f"target `nvidia` via `cute` has no {t.type}",
                hint=f"it has {', '.join(d.name for d in SCALARS)}; via `triton` has more",
                node=t,
            )
    dims = [d.name for d in kernel.dims]
    helpers: set[str] = set()
    launches = [
        Program(kernel, f"{kernel.name}_{n}", body, tensors, dims, helpers)
        for n, body in enumerate(programs)
    ]
    texts = [text for launch in launches for text in (launch.text(), "")]
    arguments, signature, calls = _host(launches)
    host = Names().fresh(kernel.name)
    header = [
        f"# CuTe DSL source of the KIR kernel `{kernel.name}`, generated.",
        "import cutlass",
        "import cutlass.cute as cute",
        f"from cutlass import {', '.join(sorted({*SCALARS.values(), *STORAGE.values()}))}",
        "",
        "",
    ]
    for name, text in HELPERS.items():
        if name in helpers:
            header += [*text.rstrip().splitlines(), "", ""]
    tail = ["", "@cute.jit", f"def {host}({', '.join(arguments)}):", *calls]
    return Generated(
        "\n".join([*header, "\n\n".join(texts).rstrip(), "", *tail]) + "\n",
        host,
        tuple(signature),
        {
            "kernels": [x.description() for x in launches],
            "temporaries": [
                {"name": t.name, "dtype": t.type.name, "shape": [as_json(n) for n in t.shape]}
                for t in temporaries
            ],
        },
    )


def _programs(kernel: Kernel) -> tuple[list[Buffer], list[tuple[Stmt, ...]]]:
    """Top-level temporaries in global memory, and the body of each launch."""
    temporaries: list[Buffer] = []
    programs: list[tuple[Stmt, ...]] = []
    loose: list[Stmt] = []
    for s in kernel.body:
        if isinstance(s, Buffer) and s.space == "global":
            temporaries.append(s)
            if s.init is not None:
                programs.append((_fill(s),))
        elif isinstance(s, Loop) and s.kind == "grid":
            if loose:
                programs.append(tuple(loose))
                loose = []
            programs.append((s,))
        elif isinstance(s, Loop | If) and any(
            isinstance(x, Loop) and x.kind == "grid" for x in walk(s)
        ):
            raise refuse(s, "a `grid` inside another construct at the top (a loop on the host)")
        else:
            loose.append(s)
    return temporaries, [*programs, *([tuple(loose)] if loose else [])]


def _fill(b: Buffer) -> Stmt:
    """The program that gives a temporary its initial value."""
    axes = [f"fill_{n}" for n in range(len(b.shape))]
    body: Stmt = Store(b.name, tuple(Var(a) for a in axes), b.init or identity("add", b.type))
    lanes = 1024
    if not axes:
        return body
    last, extent = axes[-1], b.shape[-1]
    block, lane = Var(f"{last}_o"), Var(last)
    position = simplify(op("add", op("mul", block, Const(lanes, i64)), lane))
    inside = op("lt", position, extent)
    assert isinstance(body, Store)
    body = Store(body.target, (*body.indices[:-1], position), body.value)
    body = Loop("tile", Axis(last, Const(lanes, i64)), (inside,), (body,))
    count = simplify(op("cdiv", extent, Const(lanes, i64)))
    body = Loop("grid", Axis(f"{last}_o", count), (), (body,))
    for name, n in reversed(list(zip(axes[:-1], b.shape[:-1], strict=True))):
        body = Loop("grid", Axis(name, n), (), (body,))
    return body


def _host(
    launches: Sequence[Program],
) -> tuple[list[str], list[tuple[str, str, bool]], list[str]]:
    """The host function's parameters, their types, and its body."""
    types: dict[str, tuple[str, bool]] = {}
    calls: list[str] = []
    for launch in launches:
        for name, kind, pointer in launch.signature:
            types[name] = (kind, pointer)
        calls += launch.call()
    order = [(n, k, p) for n, (k, p) in types.items()]
    order.sort(key=lambda t: not t[2])  # pointers first
    arguments = [f"{n}: cute.Pointer" if p else f"{n}: {k}" for n, k, p in order]
    return arguments, order, calls or ["    pass"]
