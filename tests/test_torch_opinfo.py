"""A sample of PyTorch's own operator database; `benchmarks/opinfo.py` runs all of it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")
pytest.importorskip("expecttest", reason="PyTorch's tests need expecttest (the extra kir[dev])")

FLOAT32 = [
    "addbmm", "argmax", "clamp", "copysign", "cummax", "cumprod", "diagonal_scatter",
    "floor_divide", "fmod", "index_add", "kthvalue", "logcumsumexp",
    "masked_scatter", "mode", "nextafter", "scatter_reduce.mean", "searchsorted", "slice_scatter",
    "sort", "std", "topk", "tril", "unfold", "nn.functional.adaptive_max_pool2d",
    "nn.functional.avg_pool3d", "nn.functional.conv_transpose2d", "nn.functional.cross_entropy",
    "nn.functional.group_norm", "nn.functional.interpolate.bilinear", "nn.functional.max_pool2d",
    "nn.functional.pad.reflect",
]  # fmt: skip
OTHERS = [
    ("bfloat16", "softmax"), ("bfloat16", "nn.functional.layer_norm"), ("bfloat16", "var_mean"),
    ("int64", "floor_divide"), ("int64", "cumsum"), ("int64", "amax"), ("bool", "any"),
    ("bool", "where"), ("bool", "flip"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "name"), [("float32", name) for name in FLOAT32] + OTHERS, ids=str
)
def test_it_is_as_eager(dtype: str, name: str) -> None:
    from benchmarks.opinfo import examine, operators

    found = list(examine(operators()[name], getattr(torch, dtype), 1))
    assert found
    assert all(o.ok and o.compiled for o in found), found


def test_what_pytorch_ran_is_seen() -> None:
    """The survey would notice if eager did the work."""
    from benchmarks.opinfo import MOVES, _profiled

    class Sample:
        input, args, kwargs = torch.ones(3), (), dict[str, object]()

    _, ran = _profiled(torch.exp, Sample(), True)
    assert ran - MOVES == {"exp"}


def test_the_table_counts_an_operator_by_its_worst_variant() -> None:
    from benchmarks.opinfo_table import Outcome, by_operator, record, table

    def operator_of(name: str) -> str:
        return name.split(".")[0]

    results = {
        ("softmax", "float32"): [Outcome(True)],
        ("softmax.with_dtype", "float32"): [Outcome(True), Outcome(False, "wrong | so")],
        ("abs", "float32"): [Outcome(True)],
    }
    assert by_operator(results, "float32", operator_of) == {"softmax": "failed", "abs": "ok"}
    text = table(record(results, ["float32"], 1, operator_of))
    assert "| float32 | 2 | 1 | 0 | 0 | 0 | 1 |" in text
    assert "| softmax.with_dtype | 1/2 | wrong \\| so |" in text
