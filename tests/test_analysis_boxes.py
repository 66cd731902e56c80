"""Quick answers about elements, held against the integer sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from kir.analysis import boxes, cover
from kir.analysis.model import Model, model_of
from kir.check import check_kernel
from kir.errors import ScopeError, UnwrittenError
from kir.pipeline import Target, choose_steps, schedule
from kir.specialise import bind_defaults, specialise
from kir.syntax import load, parse, parse_kernel

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DIMS = {
    "softmax": {"M": 33, "N": 130},
    "matmul": {"M": 65, "N": 130, "K": 70},
    "avg_pool": {"N": 1, "C": 2, "H": 20, "W": 20},
    "layer_norm": {"M": 5, "N": 64},
}


@pytest.mark.parametrize("name", DIMS)
def test_sets_agree_wherever_the_quick_answer_is_yes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = next(iter(parse(load(EXAMPLES / f"{name}.kir")).kernels().values()))
    known = {**bind_defaults(kernel), **DIMS[name]}
    kernel = specialise(kernel, {d.name: known[d.name] for d in kernel.dims if d.name in known})
    model = model_of(schedule(kernel, choose_steps(kernel, Target("cpu", arch="x86-64-v3"))))
    unfilled = [a for a in model.accesses if not a.decl.filled and a.kind != "write"]
    early = [a for a in unfilled if boxes.filled_before(model, a)]
    inside = [
        (a, d)
        for a in model.accesses
        for d in range(len(a.indices))
        if not a.padded and cover._within(model, a, d)
    ]
    whole = [d for d in model.decls if d.role == "output" and boxes.fills(model, d)]
    assert inside and (early or not unfilled)
    monkeypatch.setattr(cover, "filled_before", lambda *_: False)
    monkeypatch.setattr(cover, "fills", lambda *_: False)
    monkeypatch.setattr(cover, "_within", lambda *_: False)
    assert all(cover.read_too_early(model, a) is None for a in early)
    assert all(cover._violation(model, a, d) is None for a, d in inside)
    assert all(cover.unwritten(model, d)[0] is None for d in whole)


def scheduled(body: str) -> Model:
    text = f"kernel k[N](x: f32[32], d: i64[1]) -> (y: f32[32]) {{\n{body}\n}}"
    return model_of(parse_kernel(text))


TAIL = "for k: 32 { y[k] = b[k] }"


@pytest.mark.parametrize(
    "body",
    [
        "buffer b: f32[32] in local\nfor i: 32 { b[i] = x[i] }\n" + TAIL,
        "buffer b: f32[32] in local\nfor o: 4, i: 8 { b[o*8 + i] = x[o*8 + i] }\n" + TAIL,
        "buffer b: f32[32] in local\nfor i: 20 { b[i] = x[i] }\nfor i: 12 { b[i + 20] = x[i] }\n"
        + TAIL,
        "for t: 3 {\nbuffer b: f32[32] in local\nfor i: 32 { b[i] = x[i] }\n" + TAIL + "\n}",
        "buffer b: f32[32] in local\nfor i: 16 { b[i] = x[i] }\nfor k: 32 { y[k] = b[k // 2] }",
    ],
)
def test_fillings_that_are_seen(body: str) -> None:
    model = scheduled(body)
    (read,) = (a for a in model.accesses if a.kind == "read" and a.decl.name == "b")
    assert boxes.filled_before(model, read)
    assert boxes.fills(model, next(d for d in model.decls if d.name == "y"))
    check_kernel(model.kernel)


@pytest.mark.parametrize(
    "body",
    [
        "for i: 31 { b[i] = x[i] }\n" + TAIL,
        "for i: 31 { b[i + 1] = x[i] }\n" + TAIL,
        "for o: 3, i: 8 { b[o*9 + i] = x[i] }\n" + TAIL,
        "for i: 20 { b[i] = x[i] }\nfor i: 11 { b[i + 21] = x[i] }\n" + TAIL,
        "for i: 32 where i < 20 { b[i] = x[i] }\n" + TAIL,
        "if N > 3 { for i: 32 { b[i] = x[i] } }\n" + TAIL,
        TAIL + "\nfor i: 32 { b[i] = x[i] }",
        "for i: 32 { b[i] = x[i]\ny[i] = b[31] }",
    ],
)
def test_what_is_not_filled_is_not_said_to_be(body: str) -> None:
    model = scheduled("buffer b: f32[32] in local\n" + body)
    (read,) = (a for a in model.accesses if a.kind == "read" and a.decl.name == "b")
    assert not boxes.filled_before(model, read)
    with pytest.raises(ScopeError):
        check_kernel(model.kernel)


def test_a_diagonal_is_not_a_box() -> None:
    model = model_of(
        parse_kernel("kernel k(x: f32[8]) -> (y: f32[8, 8]) {\n  for i: 8 { y[i, i] = x[i] }\n}")
    )
    assert not boxes.fills(model, next(d for d in model.decls if d.name == "y"))
    with pytest.raises(UnwrittenError):
        check_kernel(model.kernel)
