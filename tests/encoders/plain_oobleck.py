"""The slow and plain version of the Oobleck networks that ours are compared with.

Weight norm is a hook that runs on every forward, Snake is written as its formula, nothing is folded, tiled or in place.
Module names are those of stable-audio-tools, so that its state dict is a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm


class PlainSnake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(channels) * 0.3)
        self.beta = nn.Parameter(torch.randn(channels) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha[None, :, None].exp(), self.beta[None, :, None].exp()
        return x + (1.0 / (beta + 1e-9)) * torch.sin(x * alpha) ** 2


def act(use_snake: bool, channels: int) -> nn.Module:
    return PlainSnake(channels) if use_snake else nn.ELU()


class PlainUnit(nn.Module):
    def __init__(self, channels: int, dilation: int, use_snake: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            act(use_snake, channels),
            weight_norm(nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)),
            act(use_snake, channels),
            weight_norm(nn.Conv1d(channels, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x


class Named(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def units(channels: int, use_snake: bool) -> list[nn.Module]:
    return [PlainUnit(channels, dilation, use_snake) for dilation in (1, 3, 9)]


def plain_encoder(config: Mapping[str, Any]) -> nn.Module:
    width, mults, strides = config["channels"], [1, *config["c_mults"]], config["strides"]
    snake = config.get("use_snake", False)
    layers: list[nn.Module] = [weight_norm(nn.Conv1d(config["in_channels"], width, 7, padding=3))]
    for i, stride in enumerate(strides):
        before, after = width * mults[i], width * mults[i + 1]
        down = weight_norm(nn.Conv1d(before, after, 2 * stride, stride=stride, padding=math.ceil(stride / 2)))
        layers.append(Named(*units(before, snake), act(snake, before), down))
    last = width * mults[-1]
    return Named(*layers, act(snake, last), weight_norm(nn.Conv1d(last, config["latent_dim"], 3, padding=1)))


def plain_decoder(config: Mapping[str, Any]) -> nn.Module:
    width, mults, strides = config["channels"], [1, *config["c_mults"]], config["strides"]
    snake = config.get("use_snake", False)
    layers: list[nn.Module] = [weight_norm(nn.Conv1d(config["latent_dim"], width * mults[-1], 7, padding=3))]
    for i in range(len(strides) - 1, -1, -1):
        before, after, stride = width * mults[i + 1], width * mults[i], strides[i]
        if config.get("use_nearest_upsample", False):
            pad = nn.ConstantPad1d((stride - 1, stride), 0.0)
            conv = weight_norm(nn.Conv1d(before, after, 2 * stride, bias=False))
            up: nn.Module = NearestUp(stride, pad, conv)
        else:
            padding = math.ceil(stride / 2)
            up = weight_norm(nn.ConvTranspose1d(before, after, 2 * stride, stride=stride, padding=padding))
        layers.append(Named(act(snake, before), up, *units(after, snake)))
    out = weight_norm(nn.Conv1d(width, config["out_channels"], 7, padding=3, bias=False))
    final = nn.Tanh() if config.get("final_tanh", True) else nn.Identity()
    return Named(*layers, act(snake, width), out, final)


class NearestUp(nn.Sequential):
    """Repetition at index 0 and convolution at index 1, as the keys have it."""

    def __init__(self, stride: int, pad: nn.Module, conv: nn.Module) -> None:
        super().__init__(nn.Upsample(scale_factor=stride, mode="nearest"), conv)
        self.__dict__["pad"] = pad

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self.__dict__["pad"](self[0](x)))


class PlainAutoencoder(nn.Module):
    """Encoder and decoder with random weights from a stable-audio-tools `model` config."""

    def __init__(self, model_config: Mapping[str, Any], *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = plain_encoder(model_config["encoder"]["config"])
        self.decoder = plain_decoder(model_config["decoder"]["config"])
        self.requires_grad_(False)


def model_config(
    *,
    channels: int = 4,
    c_mults: tuple[int, ...] = (1, 2),
    strides: tuple[int, ...] = (2, 4),
    latent_dim: int = 6,
    audio_channels: int = 2,
    bottleneck: dict[str, Any] | None = None,
    rate_hz: int = 44_100,
    **options: Any,
) -> dict[str, Any]:
    """A model config; the encoder gives twice the latent for a VAE, and `options` go where they are known."""
    doubled = bottleneck is not None and bottleneck["type"] in ("vae", "rvq_vae", "dac_rvq_vae")
    snake = options.get("use_snake", True)
    shared = {"channels": channels, "c_mults": list(c_mults), "strides": list(strides), "use_snake": snake}
    encoder = {"in_channels": audio_channels, "latent_dim": latent_dim * (2 if doubled else 1), **shared}
    decoder = {"out_channels": audio_channels, "latent_dim": latent_dim, **shared}
    decoder |= {k: v for k, v in options.items() if k in ("final_tanh", "use_nearest_upsample")}
    model: dict[str, Any] = {
        "encoder": {"type": "oobleck", "config": encoder},
        "decoder": {"type": "oobleck", "config": decoder},
        "latent_dim": latent_dim,
        "downsampling_ratio": math.prod(strides),
        "io_channels": audio_channels,
    }
    if bottleneck is not None:
        model["bottleneck"] = bottleneck
    return {"model_type": "autoencoder", "sample_rate": rate_hz, "audio_channels": audio_channels, "model": model}
