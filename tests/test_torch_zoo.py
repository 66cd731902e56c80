"""More models in the style of the classics, small: forward and a training step, as eager."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")

from benchmarks.torch_zoo import MODELS  # noqa: E402

QUICK = ("NetVLAD",)


@pytest.mark.parametrize("name", [
    n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS
])  # fmt: skip
def test_forward_and_a_training_step(name: str) -> None:
    entry = MODELS[name]
    found: list[Any] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, inputs = entry.build(True), entry.inputs(True)
        torch._dynamo.reset()
        run = torch.compile(model, backend="kir", options={"strict": True}) if compiled else model
        y = run(*inputs)
        y.float().square().mean().backward()
        found.append((y, [p.grad for p in model.parameters()], list(model.buffers())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, made", [(7, 3), (3, 7), (8, 2), (5, 5), (1, 3)])
def test_the_gradient_of_an_adaptive_pool(size: int, made: int) -> None:
    found: list[Any] = []
    for compiled in (False, True):
        torch._dynamo.reset()
        x = torch.randn(2, 3, size, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()

        def squared(x: Any) -> Any:
            return torch.nn.functional.adaptive_avg_pool2d(x, (made, 2)).square()

        run = torch.compile(squared, backend="kir", options={"strict": True}, dynamic=False)
        (run if compiled else squared)(x).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0])
