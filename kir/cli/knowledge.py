"""kir knowledge: find pages of what is known of fast and right kernels, and show them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kir.cli.common import Json, KernelName, Shape, choose, emit_json, parse_shape, read_module
from kir.cli.common import table as print_table
from kir.errors import UsageError
from kir.ir import Kernel

Query = Annotated[
    list[str] | None,
    typer.Argument(help="words, or the id of a page, which is then shown", show_default=False),
]
Target = Annotated[str, typer.Option("--target", help="cpu, nvidia, amd, accel; any: all pages")]
ForFile = Annotated[
    Path | None, typer.Option("--for", help="a .kir file: pages for kernels like it")
]
Diagnosis = Annotated[
    str | None, typer.Option("--diagnosis", help="what limits it: memory, matrix, vector, ...")
]
Folder = Annotated[
    list[Path] | None, typer.Option("--knowledge", help="a folder of pages of your own; repeatable")
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="how many pages to list")]


def register(app: typer.Typer) -> None:
    app.command()(knowledge)


def knowledge(
    query: Query = None,
    target: Target = "any",
    file: ForFile = None,
    kernel: KernelName = None,
    shape: Shape = None,
    diagnosis: Diagnosis = None,
    folders: Folder = None,
    limit: Limit = 10,
    as_json: Json = False,
) -> None:
    """Find pages on what makes kernels fast and right; show one by its id."""
    from kir.agent.knowledge import Knowledge, kernel_features

    known = Knowledge(folders or ())
    words = " ".join(query or ())
    for page in known.pages:
        if page.id == words:
            if as_json:
                emit_json(asdict(page))
            else:
                sources = "\n".join(f"- {source}" for source in page.sources)
                typer.echo(f"# {page.title}\n\n{page.body}\nSources:\n\n{sources}")
            return
    features: frozenset[str] = frozenset()
    if file is not None:
        item = choose(read_module(file)[1], kernel)
        if not isinstance(item, Kernel):
            raise UsageError("pages are found for a kernel, not a graph", hint="--kernel NAME")
        features = kernel_features(item, parse_shape(shape) or None)
    listed = not (words or features or diagnosis)
    hits = known.retrieve(
        sorted(features), target, diagnosis, len(known.pages) if listed else limit, query=words
    )
    if as_json:
        emit_json({"features": sorted(features), "pages": [asdict(hit) for hit in hits]})
        return
    if features:
        typer.echo("features: " + ", ".join(sorted(features)))
    print_table([(h.page.id, h.page.title) for h in hits], ("page", "title"))
