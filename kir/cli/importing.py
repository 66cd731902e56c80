"""kir import: models of PyTorch as KIR files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kir.cli.common import Json, emit_json, write_output
from kir.errors import MissingExtraError, UsageError


def register(app: typer.Typer) -> None:
    app.command("import")(import_)


def import_(
    model: Annotated[str, typer.Argument(help="MODEL.py:Class", show_default=False)],
    out: Annotated[Path, typer.Option("-o", help="the .kir file", show_default=False)],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="a type for each input, like f32[8, 64]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="[default: beside the .kir file, .safetensors]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a PyTorch model as KIR, and its weights to a safetensors file. Runs MODEL.py, which is
    Python: import only what you would run."""
    from kir.peers import require_torch
    from kir.tensors import package

    try:
        require_torch()
    except MissingExtraError:
        raise MissingExtraError("models are PyTorch's, and torch is not installed",
                                hint="pip install 'kir[torch]'") from None  # fmt: skip
    package()
    from kir.frontends.torch.importer import example, import_model, load_model, takes

    examples = [example(t) for t in inputs or []]
    loaded = load_model(model)
    if not examples and takes(loaded):
        raise UsageError(f"the model takes inputs: {takes(loaded)}",
                         hint="give the type of each in order: --input f32[8, 64]")  # fmt: skip
    made = import_model(loaded, examples, model.rpartition(":")[2], model)
    target = weights or out.with_suffix(".safetensors")
    _write(out, target, made)
    record = {"file": str(out), "weights": str(target) if made.weights else None,
              "inputs": list(made.inputs), "tensors": len(made.weights)}  # fmt: skip
    if as_json:
        emit_json(record)
        return
    typer.echo(f"wrote {out}" + (f" and {target}" if made.weights else ""))
    given = "".join(f" -i {n}={n}.npy" for n in made.inputs)
    stored = f" --weights {target}" if made.weights else ""
    typer.echo(f"  kir run {out}{stored}{given}")


def _write(out: Path, target: Path, made: Any) -> None:
    if made.weights:
        from safetensors.torch import save

        write_output(target, save(dict(made.weights)))
    write_output(out, made.text)
