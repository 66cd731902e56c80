"""Sizes that PyTorch leaves open: traced once, equal to eager at each size, also in training."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")

OPTIONS = {"strict": True}


def _model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.LayerNorm(6))


def _frames() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("mark", [True, False])
def test_a_training_step_at_several_sizes(mark: bool) -> None:
    torch._dynamo.reset()
    eager, model = _model(), _model()
    run = torch.compile(model, backend="kir", options=OPTIONS, dynamic=None if mark else True)
    before = _frames()
    for n in (3, 7, 2, 7):
        x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
        if mark:
            torch._dynamo.mark_dynamic(x, 0)
        for m, f in ((eager, eager), (model, run)):
            m.zero_grad()
            f(x).square().mean().backward()
        for p, q in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert _frames() == before + 1


def test_sizes_in_the_arithmetic_and_empty_tensors() -> None:
    def function(x: Any) -> Any:
        n, m = x.shape
        return (x.reshape(m * n) / n).view(m, n), x.flip(0)[: n // 2] + m, torch.zeros(n + 1)

    torch._dynamo.reset()
    run = torch.compile(function, backend="kir", options=OPTIONS, dynamic=True)
    for shape in ((4, 3), (5, 2), (6, 0), (2, 9)):
        x = torch.randn(*shape)
        torch.testing.assert_close(run(x), function(x))
