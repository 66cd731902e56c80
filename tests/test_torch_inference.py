"""PyTorch's own fast paths of inference are seen as what they compute."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")


@pytest.mark.parametrize("norm_first, activation, masks", [
    (True, "gelu", ""), (False, "relu", "src pad"), (False, "gelu", "pad"),
])  # fmt: skip
def test_a_layer_of_an_encoder(norm_first: bool, activation: str, masks: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, activation, batch_first=True, norm_first=norm_first
    ).eval()
    x = torch.randn(2, 5, 8)
    given: dict[str, Any] = {}
    if "src" in masks:
        given["src_mask"] = torch.ones(5, 5).triu(1).bool()
    if "pad" in masks:
        given["src_key_padding_mask"] = torch.arange(10).view(2, 5) == 4
    run = torch.compile(layer, backend="kir", options={"strict": True})
    with torch.no_grad():
        torch.testing.assert_close(run(x, **given), layer(x, **given), rtol=1e-4, atol=1e-5)
