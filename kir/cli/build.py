"""kir lower, run: the backends from the command line."""

from __future__ import annotations

import math
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kir.cli.common import (
    Arch,
    File,
    Json,
    KernelName,
    ScheduleName,
    Shape,
    StoreOption,
    TargetName,
    Via,
    choose,
    complete_shape,
    emit_json,
    from_store,
    locating,
    parse_shape,
    read_module,
    write_output,
)
from kir.errors import FileError, InputDataError, LimitError, OutputError, UsageError
from kir.ir import Graph, Kernel

if TYPE_CHECKING:
    from kir.backend import Artifact


def register(app: typer.Typer) -> None:
    app.command()(lower)
    app.command()(run)


def lower(
    file: File,
    target: TargetName = "cpu",
    via: Via = None,
    arch: Arch = None,
    emit: Annotated[str | None, typer.Option(help="a stage, or `artifact` for all")] = None,
    kernel: KernelName = None,
    shape: Shape = None,
    schedule: ScheduleName = None,
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option("-o", help="write here, not to stdout")] = None,
    as_json: Json = False,
) -> None:
    """Compile a kernel for a target and print or write a stage of it."""
    from kir.pipeline import Target, choose_steps, chosen_graph, lower_graph
    from kir.pipeline import lower as compile_kernel
    from kir.specialise import specialise

    goal = Target(target, via, arch)
    stages = goal.backend.manifest.stages[target]
    stage = emit or stages[0]
    if stage not in (*stages, "artifact"):
        raise UsageError(f"`{target}` has no stage `{stage}`", hint="it has: " + ", ".join(stages))
    if stage == "artifact" and out is None:
        raise UsageError("--emit artifact writes a folder", hint="name it with -o")
    if stage in BINARY and out is None and not as_json:
        raise UsageError(f"`{stage}` is not text", hint="write it to a file with -o")
    source, module = read_module(file)
    item = choose(module, kernel)
    dims = parse_shape(shape)
    whole = isinstance(item, Graph) and goal.backend.manifest.graphs
    module, schedule = from_store(store, module, item, dims, goal, schedule)
    with locating(source, schedule):
        if isinstance(item, Graph):
            module, item, schedule = chosen_graph(module, item, schedule)
        kernels = [item] if isinstance(item, Kernel) else _kernels_of(item, module.kernels())
        artifacts: list[Artifact] = []
        for name in (stages if stage == "artifact" else (stage,)) if whole else ():
            assert isinstance(item, Graph)
            made = lower_graph(module, item, goal, dims, schedule, name)
            if artifacts:
                made = replace(made, stages={**artifacts[0].stages, **made.stages})
            artifacts = [made]
        for k in () if whole else kernels:
            mine = {n: v for n, v in dims.items() if n in {d.name for d in k.dims}}
            spec = specialise(k, dims if isinstance(item, Kernel) else mine)
            steps = choose_steps(spec, goal, schedule, module)
            artifact = compile_kernel(spec, goal, steps, None if stage == "artifact" else stage)
            for name in stages if stage == "artifact" else ():
                if name not in artifact.stages:  # made on request alone, like cpu's `so`
                    more = compile_kernel(spec, goal, steps, name).stages[name]
                    artifact = replace(artifact, stages={**artifact.stages, name: more})
            artifacts.append(artifact)
    if stage == "artifact":
        assert out is not None
        for artifact in artifacts:
            name = artifact.kernel.name
            _write_folder(out if whole or isinstance(item, Kernel) else out / name, artifact)
    texts = {a.kernel.name: a.stages[stage] for a in artifacts if stage != "artifact"}
    records = [_record(a, stage) for a in artifacts]
    if stage == "so" and out is not None:
        for artifact in artifacts:
            write_output(out.with_suffix(".h"), artifact.stages["header"])
    _deliver(texts, stage, out, as_json, records)


def _record(artifact: Artifact, stage: str) -> dict[str, Any]:
    return {
        "kernel": artifact.kernel.name, "target": artifact.target, "arch": artifact.arch,
        "stage": stage, "launch": dict(artifact.launch), "report": dict(artifact.report),
    }  # fmt: skip


BINARY = {"cubin", "hsaco", "obj", "so"}


def _deliver(
    texts: dict[str, str | bytes],
    stage: str,
    out: Path | None,
    as_json: bool,
    records: list[dict[str, Any]],
) -> None:
    if out is not None and stage != "artifact":
        if len(texts) == 1:
            write_output(out, next(iter(texts.values())))
        else:
            for name, text in texts.items():
                write_output(out.with_name(f"{out.stem}_{name}{out.suffix}"), text)
    if as_json:
        for record in records:
            content = texts.get(record["kernel"])
            record["text"] = content if isinstance(content, str) and out is None else None
        emit_json(records)
    elif out is None:
        for text in texts.values():
            typer.echo(text, nl=False)
    else:
        typer.echo(f"wrote {out}")


def _kernels_of(graph: Graph, kernels: dict[str, Kernel]) -> list[Kernel]:
    return [kernels[name] for name in dict.fromkeys(c.kernel for c in graph.calls)]


def _write_folder(folder: Path, artifact: Artifact) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}", hint="choose another folder") from None
    for name, content in artifact.stages.items():
        write_output(folder / f"{artifact.kernel.name}.{name}", content)
    write_output(folder / "artifact.json", artifact.describe() + "\n")


def run(
    file: File,
    target: TargetName = "cpu",
    via: Via = None,
    arch: Arch = None,
    kernel: KernelName = None,
    shape: Shape = None,
    schedule: ScheduleName = None,
    store: StoreOption = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="name=file.npy; else random")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="a .safetensors file of inputs by their names")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="folder for outputs, as .npy")] = None,
    seed: Annotated[int, typer.Option(help="of the random inputs")] = 0,
    repeat: Annotated[int, typer.Option(min=1, max=10000, help="timed runs")] = 5,
    debug: Annotated[bool, typer.Option("--debug", help="check indices read from tensors")] = False,
    as_json: Json = False,
) -> None:
    """Run a kernel on a target; print the median time, GB/s and GFLOP/s."""
    from kir.cost import cost
    from kir.inputs import random_inputs
    from kir.pipeline import Target
    from kir.pipeline import compile as compile_item
    from kir.specialise import infer_dims

    source, module = read_module(file)
    item = choose(module, kernel)
    given = {**_read_weights(weights, item), **_read_arrays(inputs or [], item)}
    dims = parse_shape(shape)
    if len(given) < len(item.inputs):
        dims = complete_shape(item, dims, 256) if not given else dims
    with locating(source, schedule):
        bound = infer_dims(item, {n: a.shape for n, a in given.items()}, dims)
        _require_memory(item, bound)
        arrays = {**random_inputs(item, bound, seed, module), **given}
        goal = Target(target, via, arch, debug)
        module, schedule = from_store(store, module, item, bound, goal, schedule)
        executable = compile_item(item, goal, bound, schedule, module)
        outputs = executable(arrays, bound)
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        executable(arrays, bound, outputs)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    work = cost(item, bound, module)
    record = {
        "kernel": item.name, "target": target, "dims": bound, "seconds": seconds, "runs": repeat,
        "gb_per_s": work.bytes / seconds / 1e9, "gflop_per_s": work.operations / seconds / 1e9,
    }  # fmt: skip
    if save is not None:
        _save(save, outputs)
    if as_json:
        emit_json(record)
        return
    shown = ", ".join(f"{n} = {v}" for n, v in bound.items())
    typer.echo(f"{item.name} on {target}, {shown}")
    typer.echo(f"  median of {repeat}: {seconds * 1e3:.3f} ms, {record['gb_per_s']:.2f} GB/s, "
               f"{record['gflop_per_s']:.2f} GFLOP/s")  # fmt: skip
    for name, array in outputs.items():
        head = ", ".join(f"{x:.6g}" for x in array.astype("float64").ravel()[:4])
        more = ", ..." if array.size > 4 else ""
        typer.echo(f"  {name}: {array.dtype}{list(array.shape)} = [{head}{more}]")


def _require_memory(item: Kernel | Graph, dims: dict[str, int]) -> None:
    """LimitError where inputs and outputs alone exceed this machine's memory."""
    from kir.specialise import input_shapes, output_shapes

    shapes = {**input_shapes(item, dims), **output_shapes(item, dims)}
    needed = sum(math.prod(shapes[p.name]) * p.type.bytes for p in item.params)
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise LimitError(
            f"the tensors of `{item.name}` need {needed / 1e9:,.1f} GB, and this machine has "
            f"{present / 1e9:,.1f} GB",
            hint="choose smaller dims with --shape",
        )


def _read_arrays(specs: list[str], item: Kernel | Graph) -> dict[str, Any]:
    import numpy as np

    params = {p.name: p for p in item.inputs}
    arrays: dict[str, Any] = {}
    for spec in specs:
        name, _, path = spec.partition("=")
        if not path or name not in params:
            raise UsageError(
                f"`{spec}` names no input", hint="write name=file.npy; inputs: " + ", ".join(params)
            )
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: {error}", hint="a .npy file as NumPy saves it") from None
        wanted = params[name].type.numpy
        if array.dtype.kind == "V" and array.dtype.itemsize == wanted.itemsize:
            array = array.view(wanted)  # .npy stores bf16 and f8 as bare bytes
        if array.dtype != wanted:
            raise InputDataError(f"{path} is {array.dtype}, and `{name}` is {params[name].type}")
        arrays[name] = np.ascontiguousarray(array)
    return arrays


def _read_weights(path: Path | None, item: Kernel | Graph) -> dict[str, Any]:
    """InputDataError for a tensor that is no input, or of another dtype."""
    if path is None:
        return {}
    from kir.tensors import read

    params = {p.name: p for p in item.inputs}
    arrays = read(path)
    for name, array in arrays.items():
        if name not in params:
            raise InputDataError(
                f"`{name}` of {path} is no input of `{item.name}`",
                hint="weights are named like inputs, as `kir import` names them",
            )
        if array.dtype != params[name].type.numpy:
            raise InputDataError(
                f"`{name}` of {path} is {array.dtype}, and the input is {params[name].type}"
            )
    return arrays


def _save(folder: Path, outputs: dict[str, Any]) -> None:
    import io

    import numpy as np

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}", hint="choose another folder") from None
    for name, array in outputs.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_output(folder / f"{name}.npy", buffer.getvalue())
