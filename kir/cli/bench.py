"""kir bench: how fast a kernel is, beside the machine's limits, other schedules and PyTorch."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kir.cli.common import (
    KernelName,
    Shape,
    choose,
    complete_shape,
    emit_json,
    locating,
    parse_shape,
    read_module,
    table,
    write_output,
)
from kir.errors import FileError, UsageError, VerificationError
from kir.ir import Graph, Kernel, Module

if TYPE_CHECKING:
    from kir.backends.cpu.executable import CpuExecutable

FORMS = ("eager", "compile", "max-autotune")
CLOSE = {"f64": 1e-6, "f32": 1e-3}
"""How far results may be from the peer's, over one plus their root mean square; else CLOSE_ELSE."""
CLOSE_ELSE = 5e-2
DEFAULT_DIM = 1024
Record = dict[str, Any]


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    file: Annotated[
        Path | None, typer.Argument(help="a .kir file; without one, the suite", show_default=False)
    ] = None,
    kernel: KernelName = None,
    shape: Shape = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            "--schedule",
            help="a schedule's name or file, `none`, `default`; more are timed beside the first",
        ),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option(help="FILE.py[:FUNCTION], a PyTorch function of the same inputs in order"),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="forms of the peer: eager,compile,max-autotune (suite: jax too)"),
    ] = None,
    threads: Annotated[str | None, typer.Option(help="like 1,2 [default: 1 and all]")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.001, help="seconds per line [default: 0.5; quick 0.1]")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="of the suite: cases with this in the name")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="of the suite: a fixed third")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="write JSON; `-` is stdout")
    ] = None,
) -> None:
    """Time a kernel on the cpu, round by round in turn with the machine's limits (a copy of the
    bytes that must move, the peak of multiply-adds), other schedules, and a PyTorch function.
    Without a file: the suite of docs/benchmarks.md."""
    counts = _threads(threads)
    if file is None:
        for name, value in (("--kernel", kernel), ("--shape", shape), ("--schedule", schedule),
                            ("--peer", peer)):  # fmt: skip
            if value is not None:
                raise UsageError(f"{name} is for a file", hint="kir bench FILE.kir " + name)
        _suite(counts, _names(against, (*FORMS, "jax")), only or [], quick, json_file,
               budget)  # fmt: skip
        return
    if only or quick:
        raise UsageError("--only and --quick choose cases of the suite", hint="leave out the file")
    if against is not None and peer is None:
        raise UsageError("--against has nothing to time", hint="name a function with --peer")
    records = _measure(
        file, kernel, parse_shape(shape), schedule or ["default"], peer,
        _names(against, FORMS), counts, budget or 0.5,
    )  # fmt: skip
    _deliver(records, json_file)


def _threads(text: str | None) -> list[int]:
    cores = os.cpu_count() or 1
    if text is None:
        return sorted({1, cores})
    parts = text.split(",")
    if not all(p.strip().isdecimal() and 1 <= int(p) <= 4096 for p in parts):
        raise UsageError(f"`--threads {text}` is no list of counts", hint="like --threads 1,2")
    return list(dict.fromkeys(int(p) for p in parts))


def _names(text: str | None, known: tuple[str, ...]) -> list[str]:
    names = ["eager"] if text is None else [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no form `{name}`", hint="there is: " + ", ".join(known))
    return names


def _suite(
    threads: list[int], against: list[str], only: list[str], quick: bool, json_file: str | None,
    budget: float | None,
) -> None:  # fmt: skip
    """Hand over to benchmarks/cpu.py, which stands beside the package in a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / "benchmarks" / "cpu.py").exists():
        raise UsageError(
            "the suite is part of the source tree, and this is an installed package",
            hint="kir bench FILE.kir times your own kernels",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    from kir.peers import require_torch

    require_torch()
    made: Any = importlib.import_module("benchmarks.cpu")
    made.run(made.Options(tuple(threads), tuple(against), tuple(only), quick, budget,
                          json_file=json_file))  # fmt: skip


# --- one file ----------------------------------------------------------------------------------


def _measure(
    file: Path,
    name: str | None,
    given: dict[str, int],
    schedules: list[str],
    peer: str | None,
    against: list[str],
    threads: list[int],
    budget: float,
) -> list[Record]:
    from kir.inputs import random_inputs
    from kir.specialise import infer_dims

    source, module = read_module(file)
    item = choose(module, name)
    if isinstance(item, Graph):
        raise UsageError(
            f"`{item.name}` is a graph, and kir bench times kernels",
            hint="--kernel " + " or ".join(module.kernels()),
        )
    function = _function(peer, item.name) if peer is not None else None
    first = next((s for s in schedules if Path(s).is_file()), None)
    with locating(source, first):
        dims = infer_dims(item, {}, complete_shape(item, given, DEFAULT_DIM))
        runs = {s: _compiled(item, dims, s, module) for s in dict.fromkeys(schedules)}
        arrays = random_inputs(item, dims, 0, module)
        return [_timed(item, dims, runs, arrays, function, against, n, budget) for n in threads]


def _compiled(item: Kernel, dims: Mapping[str, int], choice: str, module: Module) -> CpuExecutable:
    from kir.backends.cpu.executable import CpuExecutable
    from kir.pipeline import compile as compile_kernel

    made = compile_kernel(item, "cpu", dims, None if choice == "default" else choice, module)
    assert isinstance(made, CpuExecutable)
    return made


def _function(peer: str, kernel: str) -> Callable[..., Any]:
    """The function that FILE.py[:FUNCTION] names: without a name, the one called as the kernel."""
    from kir.peers import require_torch

    require_torch()
    path, _, name = peer.partition(":")
    if not Path(path).is_file():
        raise FileError(f"there is no file {path}", hint="write --peer FILE.py:FUNCTION")
    try:
        space = runpy.run_path(path)
    except Exception as error:  # noqa: BLE001 - whatever the user's own file raises
        raise FileError(f"{path}: {type(error).__name__}: {error}") from None
    found: Callable[..., Any] | None = space.get(name or kernel)
    if found is None or not callable(found):
        raise UsageError(f"{path} has no function `{name or kernel}`",
                         hint="write --peer FILE.py:FUNCTION")  # fmt: skip
    return found


def _timed(
    item: Kernel,
    dims: Mapping[str, int],
    runs: Mapping[str, CpuExecutable],
    arrays: Mapping[str, Any],
    function: Callable[..., Any] | None,
    against: list[str],
    threads: int,
    budget: float,
) -> Record:
    from kir.backends.cpu import BACKEND, limits
    from kir.cost import cost
    from kir.timing import interleaved

    calls: dict[str, Callable[[], object]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        ours = BACKEND.with_threads(run.artifact, threads)
        results[name] = ours(arrays)
        calls[name] = partial(ours, arrays, None, results[name])
    (first, *others) = calls
    record: Record = {"case": item.name, "dims": dict(dims), "threads": threads,
                      "schedule": first}  # fmt: skip
    rivals: dict[str, Any] = {}
    if function is not None:
        rivals = _rivals(item, arrays, function, against, threads, results[first])
        calls |= {name: r.call for name, r in rivals.items() if r.call is not None}
    work_done = cost(item, dims)
    written = sum(a.nbytes for a in results[first].values())
    work = limits.Work(work_done.bytes, written, float(work_done.operations))
    bounds = limits.limit_calls(work, threads)
    if rivals:
        from kir.peers import threads_of

        with threads_of(threads):
            times = interleaved(calls | bounds, budget)
    else:
        times = interleaved(calls | bounds, budget)
    ours_s = times[first].median
    least = limits.least_seconds(work, threads, times)
    limit = max(least, key=lambda n: least[n])
    return record | {
        "ours_s": ours_s,
        "peers": {n: times[n].median for n in (*others, *rivals) if n in times},
        "peers_missing": {n: r.why for n, r in rivals.items() if r.call is None},
        "limit_fraction": least[limit] / ours_s,
        "limit": limit,
        "bytes": work_done.bytes,
        "operations": work_done.operations,
        "gb_per_s": work_done.bytes / ours_s / 1e9,
        "gflop_per_s": work_done.operations / ours_s / 1e9,
        "rounds": times[first].rounds,
    }


def _rivals(
    item: Kernel,
    arrays: Mapping[str, Any],
    function: Callable[..., Any],
    against: list[str],
    threads: int,
    ours: Mapping[str, Any],
) -> dict[str, Any]:
    """The peers, once their results agree with ours; VerificationError where they do not."""
    from kir import peers

    tensors = [peers.tensor_of(arrays[p.name]) for p in item.inputs]
    with peers.threads_of(threads):
        try:
            found = function(*tensors)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UsageError(
                f"the peer fails: {type(error).__name__}: {error}",
                hint="it is called with a tensor for each of "
                + ", ".join(p.name for p in item.inputs),
            ) from None
        results = found if isinstance(found, tuple) else (found,)
        if len(results) != len(item.outputs):
            raise UsageError(f"the peer gives {len(results)} results, and `{item.name}` has "
                             f"{len(item.outputs)} outputs")  # fmt: skip
        for p, result in zip(item.outputs, results, strict=True):
            apart = peers.distance(result, ours[p.name])
            if not apart <= CLOSE.get(p.type.name, CLOSE_ELSE):
                raise VerificationError(
                    f"`{p.name}` is not what the peer computes: they are {apart:.3g} apart",
                    hint="over one plus the root mean square; is it the same function?",
                )
        return {name: peers.make(name, function, tensors) for name in against}


def _deliver(records: list[Record], json_file: str | None) -> None:
    if json_file == "-":
        emit_json(records)
        return
    if json_file is not None:
        import json

        write_output(Path(json_file), json.dumps(records, indent=1) + "\n")
    shown = ", ".join(f"{n} = {v}" for n, v in records[0]["dims"].items())
    typer.echo(f"{records[0]['case']} on cpu" + (f", {shown}" if shown else ""))
    names = list(dict.fromkeys(n for r in records for n in r["peers"]))
    rows = []
    for r in records:
        ratios = [f"{r['peers'][n] / r['ours_s']:.2f}x" if n in r["peers"] else "-" for n in names]
        rows.append([
            str(r["threads"]), r["schedule"], f"{r['ours_s'] * 1e6:.1f} us",
            f"{r['gb_per_s']:.1f}", f"{r['gflop_per_s']:.1f}",
            f"{r['limit_fraction']:.0%} of {r['limit']}", *ratios,
        ])  # fmt: skip
    table(rows, ["threads", "schedule", "median", "GB/s", "GFLOP/s", "limit",
                 *(f"over {n}" for n in names)])  # fmt: skip
    for name, why in dict(pair for r in records for pair in r["peers_missing"].items()).items():
        typer.echo(f"no {name}: {why}")
