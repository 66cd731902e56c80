"""Models in the style of the classics: forward and one training step, as eager, under strict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")
nn, F = torch.nn, torch.nn.functional


class Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.n, self.m = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Any) -> Any:
        return (self.m(self.b(self.n(self.a(x)).relu())) + x).relu()


class Dense(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 2 * k, 2, 3, padding=1) for k in range(3))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.cat([x, layer(x.relu())], 1)
        return F.avg_pool2d(x, 2)


class UNet(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Any) -> Any:
        a = self.down(x).relu()
        b = self.middle(F.max_pool2d(a, 2)).relu()
        return self.out(torch.cat([a, self.up(b)], 1))


class Attention(nn.Module):  # type: ignore[misc]
    """Causal self-attention as MinGPT writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        b, t, c = x.shape
        q, k, v = (
            y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for y in self.qkv(x).split(c, 2)
        )
        scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5
        mask = torch.tril(torch.ones(t, t, dtype=torch.bool))
        y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class GPT(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(17, 16), nn.Embedding(8, 16)
        self.a, self.b, self.end = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = Attention(16, 4)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 17, bias=False)

    def forward(self, ids: Any) -> Any:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = x + self.attention(self.a(x))
        return self.head(self.end(x + self.mlp(self.b(x))))


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(x)[0][:, -1])


class ViT(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.start = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 5, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True,
                                                norm_first=True)  # fmt: skip
        self.head = nn.Linear(16, 4)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.block(x)[:, 0])


def images(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(),
                              nn.Linear(16, 4)),
        lambda: images(5, 12),
    ),
    "lenet": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10), nn.LogSoftmax(1),
        ),
        lambda: images(2, 1, 16, 16),
    ),
    "resnet block": (lambda: Residual(4), lambda: images(2, 4, 6, 6)),
    "densenet block": (Dense, lambda: images(2, 4, 6, 6)),
    "mobilenet block": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(),
            nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.Hardswish(), nn.Conv2d(6, 4, 1),
            nn.AdaptiveAvgPool2d(1),
        ),
        lambda: images(2, 3, 8, 8),
    ),
    "unet": (UNet, lambda: images(1, 1, 8, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM(5, 8, batch_first=True)), lambda: images(2, 3, 5)),
    "gru": (lambda: Recurrent(nn.GRU(5, 8, batch_first=True)), lambda: images(2, 3, 5)),
    "vit": (ViT, lambda: images(2, 3, 8, 8)),
    "minGPT": (GPT, lambda: torch.arange(14).view(2, 7) % 17),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=pytest.mark.slow) if n in ("vit", "gru") else n for n in MODELS
])  # fmt: skip
def test_forward_and_a_training_step(name: str) -> None:
    build, data = MODELS[name]
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, x = build(), data()
        torch._dynamo.reset()
        run = torch.compile(model, backend="kir", options={"strict": True}) if compiled else model
        y = run(x)
        y.float().square().mean().backward()
        found.append((y, [p.grad for p in model.parameters()], list(model.buffers())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
