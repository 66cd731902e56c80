"""Models in the style of the classics, each small for tests and of a CPU user's size for timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


@dataclass(frozen=True)
class Entry:
    """`build(small)` gives a module, `inputs(small)` what its forward takes."""

    build: Callable[[bool], nn.Module]
    inputs: Callable[[bool], tuple[Tensor, ...]]
    train: bool = True
    """Whether a training step is timed too."""


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def words(count: int, batch: int, length: int) -> Tensor:
    return torch.randint(0, count, (batch, length), generator=torch.Generator().manual_seed(1))


def images(small: bool, channels: int = 3, side: int = 64, batch: int = 8) -> tuple[Tensor, ...]:
    return (data(1 if small else batch, channels, 16 if small else side, 16 if small else side),)


def conv(a: int, b: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(b), nn.ReLU()
    )


class Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


class Branches(nn.Module):  # type: ignore[misc]
    """What its parts give, beside one another."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


def mlp(small: bool) -> nn.Module:
    n = 16 if small else 512
    return nn.Sequential(nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, 2 * n), nn.GELU(),
                         nn.Linear(2 * n, 10))  # fmt: skip


def lenet(small: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84),
        nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


def alexnet(small: bool) -> nn.Module:
    c = 4 if small else 64
    return nn.Sequential(
        nn.Conv2d(3, c, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2),
        nn.Conv2d(c, 3 * c, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(3 * c, 4 * c, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16 * c, 8 * c), nn.ReLU(), nn.Linear(8 * c, 10),
    )  # fmt: skip


def vgg(small: bool) -> nn.Module:
    c = 4 if small else 64
    layers: list[nn.Module] = []
    for a, b in ((3, c), (c, 2 * c), (2 * c, 4 * c)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1),
                   nn.ReLU(), nn.MaxPool2d(2)]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * c, 10))


def resnet(small: bool) -> nn.Module:
    c = 4 if small else 64

    def block(n: int) -> nn.Module:
        inside = nn.Sequential(conv(n, n), nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n))
        return nn.Sequential(Residual(inside), nn.ReLU())

    return nn.Sequential(conv(3, c, 3, 2), block(c), block(c), conv(c, 2 * c, 3, 2), block(2 * c),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * c, 10))  # fmt: skip


class Dense(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(channels + k * growth), nn.ReLU(),
                          nn.Conv2d(channels + k * growth, growth, 3, padding=1))
            for k in range(count)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet(small: bool) -> nn.Module:
    c = 4 if small else 32
    return nn.Sequential(conv(3, c, 3, 2), Dense(c, c // 2, 4), conv(3 * c, c, 1), nn.AvgPool2d(2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))  # fmt: skip


def mobilenet(small: bool) -> nn.Module:
    c = 4 if small else 32

    def inverted(n: int) -> nn.Module:
        return Residual(nn.Sequential(
            nn.Conv2d(n, 4 * n, 1, bias=False), nn.BatchNorm2d(4 * n), nn.ReLU6(),
            nn.Conv2d(4 * n, 4 * n, 3, padding=1, groups=4 * n, bias=False),
            nn.BatchNorm2d(4 * n), nn.Hardswish(), nn.Conv2d(4 * n, n, 1), nn.BatchNorm2d(n),
        ))  # fmt: skip

    return nn.Sequential(conv(3, c, 3, 2), inverted(c), inverted(c), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(c, 10))  # fmt: skip


class Excite(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


def efficientnet(small: bool) -> nn.Module:
    c = 4 if small else 32
    block = Residual(nn.Sequential(
        nn.Conv2d(c, 4 * c, 1, bias=False), nn.BatchNorm2d(4 * c), nn.SiLU(),
        nn.Conv2d(4 * c, 4 * c, 5, padding=2, groups=4 * c, bias=False), nn.BatchNorm2d(4 * c),
        nn.SiLU(), Excite(4 * c), nn.Conv2d(4 * c, c, 1, bias=False), nn.BatchNorm2d(c),
    ))  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), nn.SiLU(), block, nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(c, 10))  # fmt: skip


def squeezenet(small: bool) -> nn.Module:
    c = 4 if small else 32

    def fire(a: int, s: int, e: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(a, s, 1), nn.ReLU(), Branches(
            nn.Sequential(nn.Conv2d(s, e, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(s, e, 3, padding=1), nn.ReLU())))  # fmt: skip

    return nn.Sequential(nn.Conv2d(3, c, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
                         fire(c, c // 2, c), fire(2 * c, c // 2, c), nn.Conv2d(2 * c, 10, 1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip


class Shuffle(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, 3, groups=half),
                                    conv(half, half, 1))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet(small: bool) -> nn.Module:
    c = 8 if small else 64
    return nn.Sequential(conv(3, c, 3, 2), Shuffle(c), Shuffle(c), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(c, 10))  # fmt: skip


def googlenet(small: bool) -> nn.Module:
    c = 4 if small else 32
    inception = Branches(
        conv(c, c, 1), nn.Sequential(conv(c, c, 1), conv(c, c, 3)),
        nn.Sequential(conv(c, c // 2, 1), conv(c // 2, c // 2, 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(c, c // 2, 1)),
    )  # fmt: skip
    return nn.Sequential(conv(3, c, 3, 2), inception, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(3 * c, 10))  # fmt: skip


class UNet(nn.Module):  # type: ignore[misc]
    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.middle = conv(3, c), conv(c, 2 * c)
        self.up = nn.ConvTranspose2d(2 * c, c, 2, stride=2)
        self.last, self.out = conv(2 * c, c), nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        b = self.middle(F.max_pool2d(a, 2))
        return self.out(self.last(torch.cat([a, self.up(b)], 1)))


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def recurrent(kind: type[nn.Module], small: bool) -> nn.Module:
    n, m = (4, 6) if small else (64, 128)
    return Recurrent(kind(n, m, batch_first=True), m)


class GPT(nn.Module):  # type: ignore[misc]
    """Causal attention as MinGPT writes it."""

    def __init__(self, width: int, heads: int, layers: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(101, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(layers)))
        self.end, self.head = nn.LayerNorm(width), nn.Linear(width, 101, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.end(self.blocks(x)))


class GPTBlock(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.a, self.b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"),
                                 nn.Linear(4 * width, width))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
                   for y in self.qkv(self.a(x)).split(c, 2))  # fmt: skip
        scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5
        mask = torch.ones(t, t, dtype=torch.bool).tril()
        y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.b(x))


class ViT(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, patch: int, side: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True,
                                       norm_first=True) for _ in range(layers)))  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.blocks(x)[:, 0])


class Swin(nn.Module):  # type: ignore[misc]
    """Attention within shifted windows, with a bias for each distance."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm, self.end = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) / 10)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        away = at.flatten(1)[:, :, None] - at.flatten(1)[:, None] + window - 1
        self.register_buffer("away", away[0] * (2 * window - 1) + away[1])
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(),
                                 nn.Linear(2 * width, width))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n = self.window
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // n, n, w // n, n, c).transpose(2, 3).reshape(-1, n * n, c)
        q, k, v = self.qkv(y).view(-1, n * n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.away.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1)
        scores = (q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5 + bias
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n * n, c))
        y = y.view(b, h // n, w // n, n, n, c).transpose(2, 3).reshape(b, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.end(x))


class Mamba(nn.Module):  # type: ignore[misc]
    """A selective state space: a short causal convolution, then a scan over the steps."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner, self.states = 2 * width, states
        self.enter, self.leave = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.select, self.step = nn.Linear(inner, 2 * states + 4), nn.Linear(4, inner)
        self.decay = nn.Parameter(torch.log(torch.arange(1.0, states + 1).repeat(inner, 1)))
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u, gate = self.enter(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :length]).transpose(1, 2)
        small, b, c = self.select(u).split([4, self.states, self.states], -1)
        step = F.softplus(self.step(small))
        kept = torch.exp(step[..., None] * -torch.exp(self.decay))
        added = (step * u)[..., None] * b[:, :, None]
        state = torch.zeros_like(added[:, 0])
        found = []
        for t in range(length):
            state = kept[:, t] * state + added[:, t]
            found.append((state * c[:, t, None]).sum(-1))
        y = torch.stack(found, 1) + u * self.skip
        return self.leave(y * F.silu(gate))


class NetVLAD(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int, clusters: int) -> None:
        super().__init__()
        self.assign = nn.Conv2d(channels, clusters, 1)
        self.centres = nn.Parameter(torch.randn(clusters, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        soft = self.assign(x).flatten(2).softmax(1)
        away = x.flatten(2)[:, None] - self.centres[None, :, :, None]
        found = F.normalize((away * soft[:, :, None]).sum(-1), dim=2)
        return F.normalize(found.flatten(1), dim=1)


def _transformer(small: bool) -> nn.Module:
    n = 8 if small else 128
    return nn.Transformer(n, 2 if small else 4, 1, 1, 2 * n, 0.0, batch_first=True)


MODELS: dict[str, Entry] = {
    "MLP": Entry(mlp, lambda s: (data(4, 16) if s else data(64, 512),)),
    "LeNet": Entry(lenet, lambda s: (data(1 if s else 32, 1, 28, 28),)),
    "AlexNet": Entry(alexnet, lambda s: images(s)),
    "VGG": Entry(vgg, lambda s: images(s, batch=2)),
    "ResNet": Entry(resnet, lambda s: images(s, batch=4)),
    "DenseNet": Entry(densenet, lambda s: images(s)),
    "MobileNet": Entry(mobilenet, lambda s: images(s)),
    "EfficientNet": Entry(efficientnet, lambda s: images(s)),
    "SqueezeNet": Entry(squeezenet, lambda s: images(s)),
    "ShuffleNet": Entry(shufflenet, lambda s: images(s)),
    "GoogLeNet": Entry(googlenet, lambda s: images(s)),
    "U-Net": Entry(lambda s: UNet(4 if s else 16), lambda s: images(s, batch=4)),
    "RNN": Entry(lambda s: recurrent(nn.RNN, s), lambda s: (_steps(s),)),
    "LSTM": Entry(lambda s: recurrent(nn.LSTM, s), lambda s: (_steps(s),)),
    "GRU": Entry(lambda s: recurrent(nn.GRU, s), lambda s: (_steps(s),)),
    "MinGPT": Entry(
        lambda s: GPT(8, 2, 1, 6) if s else GPT(128, 4, 2, 64),
        lambda s: (words(101, 2, 6) if s else words(101, 4, 64),),
    ),
    "ViT": Entry(
        lambda s: ViT(8, 8, 16, 1) if s else ViT(128, 8, 64, 2), lambda s: images(s, batch=4)
    ),
    "Swin": Entry(
        lambda s: Swin(8, 2, 2, 1) if s else Swin(96, 3, 7, 3),
        lambda s: (data(1, 4, 4, 8) if s else data(2, 28, 28, 96),),
    ),
    "Mamba": Entry(
        lambda s: Mamba(4, 3) if s else Mamba(64, 16),
        lambda s: (data(1, 4, 4) if s else data(2, 16, 64),),
    ),
    "NetVLAD": Entry(
        lambda s: NetVLAD(4, 3) if s else NetVLAD(128, 32),
        lambda s: (data(2, 4, 3, 3) if s else data(4, 128, 14, 14),),
    ),
    "Transformer": Entry(
        _transformer,
        lambda s: (data(2, 4, 8), data(2, 3, 8)) if s else (data(4, 32, 128), data(4, 32, 128)),
    ),
}


def _steps(small: bool) -> Tensor:
    return data(2, 3, 4) if small else data(8, 24, 64)
