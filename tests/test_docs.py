"""The reference is true: every example in it runs, or fails with the error that it names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from kir import errors
from kir.check import check_module
from kir.inputs import random_inputs
from kir.interpret import run, run_graph
from kir.ir import Kernel, Module, Schedule
from kir.ops import OPS
from kir.pipeline import expand, schedule
from kir.rewrites import REWRITES
from kir.specialise import infer_dims
from kir.syntax import format_module, parse

ROOT = Path(__file__).parent.parent
LANGUAGE = ROOT / "docs" / "language.md"
BLOCK = re.compile(r"^```kir([^\n]*)\n(.*?)^```", re.M | re.S)
PAGES = [LANGUAGE, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCKS = [
    pytest.param(match[1].strip(), match[2], id=f"{page.stem}-{number}")
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("options", "text"), BLOCKS)
def test_example_in_the_docs(options: str, text: str) -> None:
    wanted = re.fullmatch(r"error=(\w+)", options)
    if wanted:
        with pytest.raises(getattr(errors, wanted[1])) as caught:
            _use(parse(text))
        assert caught.value.hint, "every error in the reference says how to mend it"
        return
    module = parse(text)
    assert parse(format_module(module)) == module
    _use(module)


def _use(module: Module) -> None:
    for error in check_module(module):
        raise error
    kernels = module.kernels()
    for item in module.items:
        if isinstance(item, Schedule):
            derived = schedule(kernels[item.kernel], expand(item, module.schedules()))
            assert _run(module, derived).keys() == _run(module, kernels[item.kernel]).keys()
        else:
            _run(module, item)


def _run(module: Module, item: object) -> dict[str, np.ndarray]:
    assert not isinstance(item, Schedule)
    dims = infer_dims(item, {}, {d.name: 7 for d in item.dims if d.default is None})
    inputs = random_inputs(item, dims, module=module)
    if isinstance(item, Kernel):
        outputs = run(item, inputs, dims)
    else:
        outputs = run_graph(module, item, inputs, dims)
    for name, array in outputs.items():
        assert np.isfinite(array.astype(np.float64)).all(), name
    return outputs


def ops_table() -> str:
    rows = ["| op | written | takes | |", "|---|---|---|---|"]
    for op in OPS.values():
        if op.infix:
            written = f"`a {op.infix} b`" if op.arity == 2 else f"`{op.infix} a`"
        else:
            written = f"`{op.name}({', '.join('abc'[: op.arity])})`"
        kinds = {"float": "floats", "int": "integers", "bool": "bool"}
        takes = ", ".join(kinds[k] for k in op.kinds if k in kinds)
        rows.append(f"| {op.name} | {written.replace('|', chr(92) + '|')} | {takes} | {op.doc} |")
    return "\n".join(rows)


def test_the_op_table_in_the_reference(update_goldens: bool) -> None:
    text = LANGUAGE.read_text(encoding="utf-8")
    before, rest = text.split("<!-- ops -->\n")
    found, after = rest.split("<!-- end of ops -->")
    if update_goldens:
        LANGUAGE.write_text(
            f"{before}<!-- ops -->\n{ops_table()}\n<!-- end of ops -->{after}", encoding="utf-8"
        )
        return
    assert found.strip() == ops_table(), "make goldens rewrites the table"


def rewrites_table() -> str:
    """Each rewrite's form and first sentence, from its docstring."""
    rows = ["| rewrite | effect at most | what it does |", "|---|---|---|"]
    for name, rewrite in REWRITES.items():
        first = " ".join((rewrite.__doc__ or "").split("\n\n")[0].split())
        form, _, rest = first.partition("`: ")
        assert form.startswith(f"`{name}("), f"the docstring of `{name}` begins with its form"
        rows.append(f"| {form}` | {rewrite.effect} | {rest.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def test_the_table_of_rewrites(update_goldens: bool) -> None:
    page = ROOT / "docs" / "rewrites.md"
    text = page.read_text(encoding="utf-8")
    head, rest = text.split("-goldens` -->\n")
    _, tail = rest.split("<!-- end -->")
    made = f"{head}-goldens` -->\n{rewrites_table()}\n<!-- end -->{tail}"
    if update_goldens:
        page.write_text(made, encoding="utf-8")
    assert made == page.read_text(encoding="utf-8")
