"""Chains: a convolution, transposed convolution or linear layer, then three to five operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_zoo import Entry, data

Tensor = torch.Tensor


class Chain(nn.Module):  # type: ignore[misc]
    def __init__(self, first: nn.Module, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.rest = first, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


Rest = Callable[[Tensor], Tensor]
ON_IMAGES: dict[str, Rest] = {
    "bias relu add": lambda x: (x - 0.5).relu() + 0.1 * x,
    "min tanh tanh": lambda x: torch.tanh(torch.tanh(x.amin(1, keepdim=True))),
    "scale clamp sigmoid": lambda x: torch.sigmoid((x * 2).clamp(-1, 1)) * x,
    "hardswish pool mean": lambda x: F.max_pool2d(F.hardswish(x - 0.3), 2).mean((2, 3)),
    "softmax pool pool": lambda x: F.max_pool2d(F.max_pool2d(x.softmax(1), 2), 2),
    "mish hardtanh scale": lambda x: F.hardtanh(F.mish(x) + 0.5) * 2,
    "group norm silu mean": lambda x: F.silu(F.group_norm(x, 8)).mean((1, 2, 3)),
    "instance norm div": lambda x: F.instance_norm(x).relu() / 2,
    "avg pool sigmoid sum": lambda x: torch.sigmoid(F.avg_pool2d(x, 4)).sum((1, 2, 3)),
    "gelu mean logsumexp": lambda x: F.gelu(x).mean((2, 3)).logsumexp(1),
    "leaky mul max": lambda x: F.leaky_relu(F.leaky_relu(x) * x.amax(1, keepdim=True)),
    "softplus tanh pool": lambda x: F.avg_pool2d(torch.tanh(F.softplus(x)) * x, 2),
}
ON_ROWS: dict[str, Rest] = {
    "relu scale add": lambda x: (x.relu() * 2 + x).clamp(max=4),
    "gelu softmax": lambda x: F.gelu(x * 0.5).softmax(1),
    "layer norm silu": lambda x: F.silu(F.layer_norm(x, (256,))) * x,
    "group norm leaky": lambda x: F.leaky_relu(F.group_norm(x, 8)) + x,
    "logsumexp mish": lambda x: F.mish(x.logsumexp(1, keepdim=True)) * 2,
    "sub mean gelu": lambda x: F.gelu(x - x.mean(1, keepdim=True)) + x,
    "max sum": lambda x: F.max_pool1d(x[:, None], 2).squeeze(1).sum(1) * 0.5,
    "sigmoid sum": lambda x: torch.sigmoid(x).sum(1, keepdim=True) * x,
    "swish tanh gelu": lambda x: F.hardtanh(F.gelu(torch.tanh(x * torch.sigmoid(x)))),
    "rms norm": lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * 2,
}


def _conv(small: bool) -> nn.Module:
    return nn.Conv2d(3, 32, 3)


def _deep(small: bool) -> nn.Module:
    return nn.Conv2d(32, 32, 3, padding=1)


def _transposed(small: bool) -> nn.Module:
    return nn.ConvTranspose2d(16, 32, 3, stride=2, padding=1, output_padding=1)


def _linear(small: bool) -> nn.Module:
    return nn.Linear(32 if small else 512, 256)


def _entry(first: Callable[[bool], nn.Module], rest: Rest, *shape: int) -> Entry:
    def inputs(small: bool) -> tuple[Tensor, ...]:
        if len(shape) == 2:
            return (data(2, 32) if small else data(*shape),)
        return (data(1, shape[1], 8, 8) if small else data(*shape),)

    return Entry(lambda small: Chain(first(small), rest), inputs, train=False)


def _chains() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for k, (name, rest) in enumerate(ON_IMAGES.items()):
        found[f"conv {name}"] = _entry(_conv, rest, 8, 3, 64, 64)
        if k % 2 == 0:
            found[f"conv transposed {name}"] = _entry(_transposed, rest, 4, 16, 24, 24)
        elif k % 4 == 1:
            found[f"conv 32 {name}"] = _entry(_deep, rest, 4, 32, 32, 32)
    for name, rest in ON_ROWS.items():
        found[f"linear {name}"] = _entry(_linear, rest, 128, 512)
    return found


CHAINS = _chains()
