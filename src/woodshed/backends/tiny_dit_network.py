"""The network of woodshed-tiny-dit: a small diffusion transformer over latents of woodshed-tiny.

Built as ACE-Step's transformer is, only smaller: rotary self-attention with normed queries and keys, cross-attention
to the condition, a gated feed-forward, and a modulation that one projection of the timestep gives to all layers and
each layer shifts by a table of its own. The condition is one tag of a short list, as a few learned tokens; row 0 stands
for no tag.

The transformer does not give the velocity itself but what a straight line leaves of it. For data of zero mean and unit
variance, the best linear guess of the velocity x1 - x0 from x_t = t x1 + (1 - t) x0 is x_t (2t - 1) / (t^2 + (1-t)^2),
and what it misses has the variance 1 / (t^2 + (1-t)^2): the same idea as in Karras et al. 2022, arXiv:2206.00364,
section 5.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from woodshed.errors import ModelError, UsageError

TAGS = ("rock", "metal", "guitar", "ambient", "electronic", "acoustic", "hold music", "drums")
"""What woodshed-tiny-dit can be asked for."""
ASSET = "woodshed-tiny-dit.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyDitConfig:
    """The shape of the network and what it was trained with; stored beside the weights."""

    tags: tuple[str, ...] = TAGS
    latent_dim: int = 64
    width: int = 128
    hidden: int = 320
    """Width inside the gated feed-forward."""
    num_layers: int = 6
    num_heads: int = 4
    cross_width: int = 64
    """Width of the condition tokens and inside the cross-attention."""
    num_cross_heads: int = 2
    tokens_per_tag: int = 4
    rotary_base: float = 10_000.0
    longest_frames: int = 512
    """Longest crop seen in training: 10.24 s at 50 Hz."""
    time_mean: float = 0.0
    time_std: float = 1.0
    """Training timesteps are the logistic function of a normal variable with this mean and deviation."""
    condition_dropout: float = 0.12

    def __post_init__(self) -> None:
        if self.width % (2 * self.num_heads) or self.cross_width % self.num_cross_heads:
            raise ModelError(
                f"width={self.width} does not split into {self.num_heads} heads of even size, or "
                f"cross_width={self.cross_width} not into {self.num_cross_heads}",
                hint="choose multiples",
            )

    def tag_index(self, tag: str | None) -> int:
        """Row of a tag among the learned conditions; 0 for none.

        >>> TinyDitConfig().tag_index("metal"), TinyDitConfig().tag_index(None)
        (2, 0)
        """
        if tag is None:
            return 0
        if tag not in self.tags:
            raise UsageError(f"tag {tag!r} is none that the model knows", hint=f"use one of: {', '.join(self.tags)}")
        return 1 + self.tags.index(tag)


class SelfAttention(nn.Module):
    """Every frame looks at every valid frame; queries and keys are normed, then turned by their place."""

    def __init__(self, config: TinyDitConfig) -> None:
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(width // self.num_heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(width // self.num_heads, eps=1e-6)

    def forward(
        self,
        x: Float[Tensor, "batch frame width"],
        turn: Rotation,
        seen: Bool[Tensor, "batch 1 1 frame"] | None,
    ) -> Float[Tensor, "batch frame width"]:
        q = turn(self.q_norm(in_heads(self.q_proj(x), self.num_heads)))
        k = turn(self.k_norm(in_heads(self.k_proj(x), self.num_heads)))
        v = in_heads(self.v_proj(x), self.num_heads)
        mixed: Tensor = self.o_proj(from_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=seen)))
        return mixed


class CrossAttention(nn.Module):
    """Every frame looks at the tokens of the condition."""

    def __init__(self, config: TinyDitConfig) -> None:
        super().__init__()
        inner, self.num_heads = config.cross_width, config.num_cross_heads
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(inner, inner, bias=False)
        self.v_proj = nn.Linear(inner, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)
        self.q_norm = nn.RMSNorm(inner // self.num_heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(inner // self.num_heads, eps=1e-6)

    def forward(
        self, x: Float[Tensor, "batch frame width"], tokens: Float[Tensor, "batch token inner"]
    ) -> Float[Tensor, "batch frame width"]:
        q = self.q_norm(in_heads(self.q_proj(x), self.num_heads))
        k = self.k_norm(in_heads(self.k_proj(tokens), self.num_heads))
        v = in_heads(self.v_proj(tokens), self.num_heads)
        mixed: Tensor = self.o_proj(from_heads(F.scaled_dot_product_attention(q, k, v)))
        return mixed


class FeedForward(nn.Module):
    """Gated feed-forward: SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: TinyDitConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """Self-attention, cross-attention, feed-forward; the first and last are shifted, scaled and gated by the time."""

    def __init__(self, config: TinyDitConfig) -> None:
        super().__init__()
        self.self_attn_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.self_attn = SelfAttention(config)
        self.cross_attn_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.cross_attn = CrossAttention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.mlp = FeedForward(config)
        table = torch.zeros(6, config.width)
        table[2], table[5] = 1.0, 1.0
        self.scale_shift_table = nn.Parameter(table)
        """Shift, scale and gate of the self-attention, then of the feed-forward."""

    def forward(
        self,
        x: Float[Tensor, "batch frame width"],
        modulation: Float[Tensor, "batch 6 width"],
        tokens: Float[Tensor, "batch token inner"],
        turn: Rotation,
        seen: Bool[Tensor, "batch 1 1 frame"] | None,
    ) -> Float[Tensor, "batch frame width"]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (modulation + self.scale_shift_table)[:, :, None].unbind(1)
        x = x + gate * self.self_attn(self.self_attn_norm(x) * (1 + scale) + shift, turn, seen)
        x = x + self.cross_attn(self.cross_attn_norm(x), tokens)
        y: Tensor = x + mlp_gate * self.mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)
        return y


class Rotation:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of values turned by an angle that grows in time."""

    def __init__(self, num_frames: int, size: int, *, base: float, like: Tensor) -> None:
        rates = base ** -(torch.arange(0, size, 2, device=like.device, dtype=torch.float32) / size)
        angles = torch.arange(num_frames, device=like.device, dtype=torch.float32)[:, None] * rates
        self.cos, self.sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def __call__(self, x: Float[Tensor, "batch head frame size"]) -> Float[Tensor, "batch head frame size"]:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-1)


def in_heads(x: Float[Tensor, "batch place inner"], num_heads: int) -> Float[Tensor, "batch head place size"]:
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def from_heads(x: Float[Tensor, "batch head place size"]) -> Float[Tensor, "batch place inner"]:
    return x.transpose(1, 2).flatten(2)


class TinyDit(nn.Module):
    """Velocity of noisy latents. Frames lie along the second axis inside; the codec's latents are transposed."""

    def __init__(self, config: TinyDitConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.proj_in = nn.Linear(config.latent_dim, width)
        self.time_in = nn.Linear(width, width)
        self.time_out = nn.Linear(width, width)
        self.time_proj = nn.Linear(width, 6 * width)
        """Modulation of all layers."""
        self.condition = nn.Parameter(torch.randn(1 + len(config.tags), config.tokens_per_tag, config.cross_width))
        """Learned tokens of no tag, then of each tag."""
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm_out = nn.RMSNorm(width, eps=1e-6)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, config.latent_dim)
        self._begin()

    def _begin(self) -> None:
        """Residual branches start small, and the output at zero: the untrained network is the linear guess."""
        for name, weight in self.layers.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=1 / math.sqrt(2 * self.config.num_layers * weight.shape[1]))
        for linear in (self.time_proj, self.proj_out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        noisy: Float[Tensor, "batch frame latent"],
        time: Float[Tensor, "batch"],
        tag: Int64[Tensor, "batch"],
        mask: Bool[Tensor, "batch frame"] | None = None,
    ) -> Float[Tensor, "batch frame latent"]:
        """The velocity, from data to noise.

        Args:
            noisy: time x noise + (1 - time) x data.
            time: 0 for data, 1 for noise.
            tag: rows of the condition (`TinyDitConfig.tag_index`).
            mask: True for valid frames; none of them sees another one. None: all are valid.
        """
        config = self.config
        power = (time.square() + (1 - time).square())[:, None, None]
        x = self.proj_in(noisy * power.rsqrt())
        times = self.time_out(F.silu(self.time_in(sinusoids(time, config.width))))
        modulation = self.time_proj(F.silu(times)).unflatten(1, (6, -1))
        turn = Rotation(x.shape[1], config.width // config.num_heads, base=config.rotary_base, like=x)
        seen = None if mask is None else mask[:, None, None]
        tokens = self.condition[tag]
        for layer in self.layers:
            x = layer(x, modulation, tokens, turn, seen)
        shift, scale = (times[:, None] + self.scale_shift_table)[:, :, None].unbind(1)
        rest = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        velocity: Tensor = noisy * ((2 * time - 1)[:, None, None] / power) + rest * power.rsqrt()
        return velocity


def sinusoids(time: Float[Tensor, "batch"], width: int) -> Float[Tensor, "batch width"]:
    """Sines and cosines of 1000 x time, at rates from 1 down to 1/10000 in equal ratios."""
    places = torch.arange(width // 2, device=time.device, dtype=torch.float32) / (width // 2)
    rates = torch.exp(-math.log(10_000) * places)
    angles = 1000 * time.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(time.dtype)


def load_woodshed_tiny_dit(*, device: str | torch.device = "cpu") -> TinyDit:
    """The trained network that ships in this package, in float32.

    >>> network = load_woodshed_tiny_dit()
    >>> network(torch.randn(1, 50, 64), torch.tensor([0.5]), torch.tensor([0])).shape
    torch.Size([1, 50, 64])
    """
    with as_file(files("woodshed") / "assets" / ASSET) as path:
        return load_tiny_dit(path).to(device)


def load_tiny_dit(path: Path) -> TinyDit:
    """A network from a file of `save_tiny_dit`, in float32; missing or extra weights are an error.

    Raises:
        ModelError: the file has no configuration, or its weights are those of another network.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        stored = file.metadata() or {}
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    if "config" not in stored:
        raise ModelError(f"{path} has no `config` in its metadata", hint="give a file of save_tiny_dit")
    fields = json.loads(stored["config"])
    network = TinyDit(TinyDitConfig(**fields | {"tags": tuple(fields["tags"])}))
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ModelError(f"{path} holds the weights of another network: {error}") from error
    return network.eval()


def save_tiny_dit(network: TinyDit, path: Path) -> None:
    """Write weights in half precision, and the configuration as JSON in the metadata."""
    from safetensors.torch import save_file

    weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, path, metadata={"config": json.dumps(asdict(network.config))})
