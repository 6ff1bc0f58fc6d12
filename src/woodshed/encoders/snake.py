"""Snake, the periodic activation: x + gain * sin(rate * x)^2."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

SnakeFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def snake(x: Tensor, rate: Tensor, gain: Tensor) -> Tensor:
    """The formula, differentiable. `x` is (batch, channel, time), the others (channel, 1)."""
    return torch.addcmul(x, torch.sin(x * rate).square(), gain)


def _snake_in_place(x: Tensor, rate: Tensor, gain: Tensor) -> Tensor:
    # One temporary, which becomes the result: fresh memory costs more than the arithmetic.
    wave = torch.mul(x, rate).sin_().square_()
    return torch.addcmul(x, wave, gain, out=wave)


class Snake(nn.Module):
    """Snake with one frequency and one strength per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(channels, 1))
        """exp(alpha) of the checkpoint."""
        self.gain = nn.Parameter(torch.ones(channels, 1))
        """1 / (exp(beta) + 1e-9) of the checkpoint."""
        self.compiled: SnakeFunction | None = None

    def forward(self, x: Float[Tensor, "batch channel time"]) -> Float[Tensor, "batch channel time"]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return snake(x, self.rate, self.gain)
        return (self.compiled or _snake_in_place)(x, self.rate, self.gain)


def sine_squared(angle: Tensor) -> Tensor:
    """sin(angle)^2 in float32, from arithmetic that a compiler can put into one loop.

    Off by at most 4e-7 more than the rounding of the angle itself makes it. The angle is brought to
    [-pi/2, pi/2], the square's own period, where a polynomial in its square follows.
    """
    # Numbers stand where they are used: the compiler would load a constant of the module again for each sample.
    half_turns = torch.round(angle * 0.3183098861837907)
    # pi in three parts, the first two so short that their products with whole numbers below 2^13 are exact
    rest = angle - half_turns * 3.140625 - half_turns * 9.67502593994140625e-4 - half_turns * 1.509957990978376e-07
    square = rest * rest
    # Chebyshev fit of sin(sqrt(u))^2 / u on [0, (pi / 2)^2], off by less than 1e-9
    value = square * 8.133221856723773e-08 - 4.233659264078263e-06
    value = value * square + 0.00014102377212296072
    value = value * square - 0.0031745433731485916
    value = value * square + 0.0444444199550359
    value = value * square - 0.3333333295675097
    return (value * square + 0.9999999999053766) * square


def compile_snake(network: nn.Module) -> None:
    """Let every Snake in `network` run as one fused kernel (needs a working C++ or Triton compiler at the first call).

    One kernel serves all shapes. Results differ from the plain ones by rounding (4e-7).
    """

    def formula(x: Tensor, rate: Tensor, gain: Tensor) -> Tensor:
        if x.dtype == torch.float32 and x.device.type == "cpu":  # elsewhere a sine is cheap, or has to be exact
            return x + gain * sine_squared(x * rate)
        return snake(x, rate, gain)

    kernel = cast(SnakeFunction, torch.compile(formula, dynamic=True))

    def fused(x: Tensor, rate: Tensor, gain: Tensor) -> Tensor:
        # Detached, because the compiler makes a kernel for each shape of a parameter. Of two axes, because it makes
        # another for a batch of one.
        batch, channels, time = x.shape
        rows = x.reshape(batch * channels, time)
        wide = [factor.detach().repeat(batch, 1) if batch > 1 else factor.detach() for factor in (rate, gain)]
        return kernel(rows, *wide).view(batch, channels, time)

    for module in network.modules():
        if isinstance(module, Snake):
            module.compiled = fused
