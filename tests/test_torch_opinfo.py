"""A sample of PyTorch's own operator database; `benchmarks/opinfo.py` runs all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")
pytest.importorskip("expecttest", reason="PyTorch's tests need expecttest (the extra kir[dev])")

SAMPLE = {
    "float32": (
        "cdist", "cummax", "frexp", "gather", "index_put", "kthvalue", "logcumsumexp",
        "scatter_reduce.mean", "nn.functional.conv_transpose2d", "nn.functional.group_norm",
        "nn.functional.interpolate.bilinear", "nn.functional.scaled_dot_product_attention",
    ),
    "bfloat16": ("nn.functional.layer_norm", "sort"),
    "int64": ("nn.functional.avg_pool2d",),
    "bool": ("lt", "scatter_reduce.amin"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "name"), [(d, name) for d, names in SAMPLE.items() for name in names], ids=str
)
def test_it_is_as_eager(dtype: str, name: str) -> None:
    from benchmarks.opinfo import examine, operators

    found = list(examine(operators()[name], getattr(torch, dtype), 1))
    assert found
    assert all(o.ok and o.compiled for o in found), found


def _compiled(f: Callable[..., Any], *inputs: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(f, backend="kir", options={"strict": True}, dynamic=False)(*inputs)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("lgamma", -20, 20), ("erfinv", -1, 1),
        ("special.i1e", -40, 40), ("special.modified_bessel_k1", 0, 40),
    ],
)  # fmt: skip
def test_special_functions_are_rounded_once(name: str, least: float, most: float) -> None:
    """Half a unit of f32, and what f64 lost before. PyTorch's own J and Y of f64 are 2e-7 off."""
    f: Any = torch
    for part in name.split("."):
        f = getattr(f, part)
    x = torch.cat([torch.linspace(least, most, 997), torch.tensor([0.5, 1, 2, least, most])])
    exact = f(x.double())
    unit = torch.finfo(torch.float32).eps * exact.abs().clamp(min=2.0**-126)
    got = _compiled(f, x)
    finite = torch.isfinite(exact.float())
    assert torch.equal(got[~finite].isnan(), exact[~finite].isnan())
    assert bool(((got.double() - exact).abs() <= 0.7 * unit)[finite].all())


def test_chebyshev_polynomials_beyond_one() -> None:
    x, n = torch.linspace(-1.5, 1.5, 121), torch.arange(-1, 12)[:, None].float()
    exact = torch.special.chebyshev_polynomial_w(x.double(), n.double())
    got = _compiled(torch.special.chebyshev_polynomial_w, x, n)
    assert bool(((got.double() - exact).abs() <= 6e-8 * exact.abs() + 1e-7).all())


def test_derivatives_of_digamma_go_below_zero() -> None:
    x = torch.linspace(-5.03, 9, 401)
    exact = torch.polygamma(3, x.double())
    got = _compiled(lambda v: torch.polygamma(3, v), x)
    assert bool(((got.double() - exact).abs() <= 1e-7 * exact.abs()).all())


def test_as_many_nonzeros_as_asked_for() -> None:
    x = torch.tensor([[0.0, 1, 2], [3, 0, 0], [0, -1, 0]])
    for count in (4, 6):
        got = _compiled(lambda v, n=count: torch.nonzero_static(v, size=n, fill_value=-7), x)
        assert torch.equal(got, torch.nonzero_static(x, size=count, fill_value=-7))


def test_pairs_of_rows_in_order() -> None:
    x = torch.randn(33, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_compiled(torch.pdist, x), torch.pdist(x))


def test_what_pytorch_ran_is_seen() -> None:
    """The survey would notice if eager did the work."""
    from benchmarks.opinfo import MOVES, _profiled

    class Sample:
        input, args, kwargs = torch.ones(3), (), dict[str, object]()

    _, ran = _profiled(torch.exp, Sample(), True)
    assert ran - MOVES == {"exp"}


def test_a_survey_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    from benchmarks.opinfo import read_log

    path = tmp_path / "log"
    whole = '["abs", "float32", [{"ok": true}], "1234567"]\n'
    path.write_text(whole + whole[:20])
    results, commits = read_log(path)
    assert list(results) == [("abs", "float32")]
    assert results["abs", "float32"][0].ok
    assert commits == {"1234567"}
    assert path.read_text() == whole


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
    text = table(record(results, ["float32"], 1, ["1234567"], operator_of))
    assert "| float32 | 2 | 1 | 0 | 0 | 0 | 1 |" in text
    assert "| softmax.with_dtype | 1/2 | wrong \\| so |" in text
