"""woodshed-tiny: the small neural audio codec that ships with Woodshed.

A mono autoencoder at 24 kHz with 64 values per 20 ms frame, and residual codebooks trained together with it. The
encoder sees a short-time spectrum at 100 Hz, mixes it with a few ConvNeXt blocks and halves the rate; the decoder is
its mirror and ends in a complex spectrum and a fixed overlap-add. Everything has a finite reach, so a long file can be
coded in windows: one that starts on the hop grid and carries `encode_reach_frames` of real context on an inner side
gives, past that context, what the unchunked encode gives. Files with more channels are coded one channel at a time.

How the weights were made, on which sounds and how well they do is in `docs/models/woodshed-tiny.md`; the recipe is in
`recipes/woodshed_tiny/`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int8, Int64
from torch import Tensor, nn

SPECTRUM_POWER = 0.3
"""Magnitudes are compressed to this power before the encoder sees them; phases stay."""
LEAST_POWER = 1e-10
"""Added to powers before a logarithm or a negative power: -100 dB below a full-scale sine."""

SCALE_SUFFIX = ".scale"
"""Name of the row scales of a matrix that is stored as bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyCodecConfig:
    """The shape of the network; stored beside the weights."""

    rate_hz: int = 24_000
    hop_samples: int = 480
    """Samples per latent frame: 50 Hz."""
    latent_dim: int = 64
    num_codebooks: int = 12
    codebook_size: int = 1024
    codebook_rank: int = 12
    """Each codebook is a product of a `size x rank` and a `rank x latent` matrix, which keeps the file small."""
    n_fft: int = 960
    """Window of the spectrum; it moves by half a hop."""
    width: int = 320
    hidden: int = 576
    num_bands: int = 64
    """Bands of the loudness features that the encoder reads and of the gains that the decoder writes."""
    num_linear_bins: int = 160
    """Lowest bins that the encoder also reads uncompressed, divided by their frame's level: 160 reach 4 kHz."""
    kernel: int = 7
    encoder_fine_blocks: int = 2
    """Blocks at twice the latent rate."""
    encoder_coarse_blocks: int = 1
    """Blocks at the latent rate."""
    decoder_coarse_blocks: int = 1
    decoder_fine_blocks: int = 3

    def __post_init__(self) -> None:
        if self.hop_samples % 2 or (self.n_fft - self.hop_samples // 2) % 2:
            raise ValueError(
                f"hop_samples={self.hop_samples} must be even, n_fft={self.n_fft} must centre on half of it"
            )
        if self.n_fft % (self.hop_samples // 2) or self.n_fft < 3 * (self.hop_samples // 2):
            raise ValueError(f"n_fft={self.n_fft} must be 3 or more times half of hop_samples={self.hop_samples}")

    @property
    def stride_samples(self) -> int:
        """Distance of two spectrum frames: two make one latent frame."""
        return self.hop_samples // 2

    @property
    def margin_samples(self) -> int:
        """How far a spectrum frame reaches beyond its own stride, on each side."""
        return (self.n_fft - self.stride_samples) // 2

    def reach_frames(self, *, fine_blocks: int, coarse_blocks: int) -> int:
        """Latent frames on each side that one output depends on, for so many blocks at the two rates."""
        samples = self.margin_samples + fine_blocks * (self.kernel // 2) * self.stride_samples
        return coarse_blocks * (self.kernel // 2) + -(-samples // self.hop_samples)


class ConvNextBlock(nn.Module):
    """Mixing over time per channel, then over channels per frame, added to the input."""

    def __init__(self, *, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.mix = nn.Parameter(torch.randn(kernel, width) / kernel**0.5)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        nn.init.normal_(self.narrow.weight, std=0.3 / hidden**0.5)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        mixed = F.conv1d(x.transpose(1, 2), self.mix.T[:, None], padding=self.kernel // 2, groups=x.shape[2])
        added: Tensor = self.narrow(F.gelu(self.widen(self.norm(mixed.transpose(1, 2)))))
        return x + added


class Spectrum(nn.Module):
    """The fixed, linear ends of the network: audio to spectrum frames and back."""

    window: Tensor
    bands: Tensor

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        self.config = config
        window = torch.hann_window(config.n_fft, dtype=torch.float64)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bands", band_weights(config), persistent=False)

    def analyse(self, audio: Float[Tensor, "batch 1 time"]) -> Float[Tensor, "batch frame feature"]:
        """Compressed spectrum and band levels, two frames per hop; a full-scale sine has magnitude 1."""
        config = self.config
        padded = F.pad(audio[:, 0], (config.margin_samples, config.margin_samples))
        frames = padded.unfold(1, config.n_fft, config.stride_samples) * self.window.to(audio.dtype)
        spectrum = torch.view_as_real(torch.fft.rfft(frames)) * (4 / config.n_fft)
        power = spectrum.square().sum(-1)
        compressed = spectrum * (power + LEAST_POWER).pow((SPECTRUM_POWER - 1) / 2)[..., None]
        levels = torch.log10(power @ self.bands.to(audio.dtype).T + LEAST_POWER)
        level = (power.sum(-1, keepdim=True) + LEAST_POWER).sqrt()
        linear = spectrum[..., : config.num_linear_bins, :].flatten(2) / level
        return torch.cat([4 * compressed.flatten(2), 0.5 * (levels + 6), 8 * linear], dim=-1)

    def synthesise(self, features: Float[Tensor, "batch frame feature"]) -> Float[Tensor, "batch 1 time"]:
        """Complex spectrum times band gains (natural logarithms) to audio, by overlap-add of windowed frames.

        The windows add up to a constant, so every frame is scaled alike and sound can be put together from pieces.
        """
        config, stride = self.config, self.config.stride_samples
        num_bins = config.n_fft // 2 + 1
        parts, gains = torch.split(features, [2 * num_bins, config.num_bands], dim=-1)
        # Gains vary smoothly over frequency: each bin takes the mean of its bands.
        shares = self.bands / self.bands.sum(0).clamp_min(1e-12)
        gain = torch.exp(gains.clamp(-16, 6) @ shares.to(features.dtype))
        spectrum = torch.view_as_complex(parts.reshape(*gain.shape, 2) * gain[..., None])
        frames = torch.fft.irfft(spectrum * (config.n_fft / 4), n=config.n_fft)
        window = self.window / (self.window.square().sum() / stride)
        pieces = torch.split(frames * window.to(features.dtype), stride, dim=-1)
        num_frames, last = frames.shape[1], len(pieces) - 1
        audio = torch.stack([F.pad(piece, (0, 0, k, last - k)) for k, piece in enumerate(pieces)]).sum(0).flatten(1)
        return audio[:, None, config.margin_samples : config.margin_samples + num_frames * stride]


def band_weights(config: TinyCodecConfig) -> Float[Tensor, "band bin"]:
    """Overlapping triangles over the bins, equally wide in HTK mels; each sums to 1, every bin lies in one at least."""
    num_bins = config.n_fft // 2 + 1
    hz = torch.arange(num_bins, dtype=torch.float64) * config.rate_hz / config.n_fft
    place = 2595 * torch.log10(1 + hz / 700)
    place = place / place[-1] * (config.num_bands - 1)
    distance = (place[None] - torch.arange(config.num_bands, dtype=torch.float64)[:, None]).abs()
    # Low bands are narrower than a bin: they read the nearest one.
    weights = (1 - distance).clamp_min(0)
    weights[torch.arange(config.num_bands), distance.argmin(1)] += 1e-3
    return weights / weights.sum(1, keepdim=True)


class ResidualCodebooks(nn.Module):
    """Codebooks applied one after the other, each to what the ones before left over."""

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        size, rank = config.codebook_size, config.codebook_rank
        self.codes = nn.Parameter(torch.randn(config.num_codebooks, size, rank) / rank**0.5)
        directions = torch.randn(config.num_codebooks, rank, config.latent_dim)
        self.directions = nn.Parameter(directions / config.latent_dim**0.5)

    def entries(self) -> Float[Tensor, "codebook size latent"]:
        """All codebook entries as points among the latents."""
        return self.codes @ self.directions

    def quantize(
        self, latents: Float[Tensor, "batch latent frame"], *, num_codebooks: int | None = None
    ) -> Int64[Tensor, "batch codebook frame"]:
        """Nearest entry of each codebook in turn; the first `num_codebooks` only, if given."""
        rest = latents.transpose(1, 2)
        chosen = []
        for table in self.entries()[:num_codebooks]:
            index = (table.square().sum(1) - 2 * (rest @ table.T)).argmin(-1)
            rest = rest - table[index]
            chosen.append(index)
        return torch.stack(chosen, dim=1)

    def dequantize(self, codes: Int64[Tensor, "batch codebook frame"]) -> Float[Tensor, "batch latent frame"]:
        """Sum of the chosen entries; fewer codebooks than there are give a coarser sound."""
        tables = self.entries()
        total = sum(tables[k][codes[:, k]] for k in range(codes.shape[1]))
        assert isinstance(total, Tensor)
        return total.transpose(1, 2)


class TinyCodec(nn.Module):
    """The autoencoder and its codebooks. Latents have about zero mean and unit variance per channel."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        num_outputs = config.n_fft + 2 + config.num_bands
        num_inputs = num_outputs + 2 * config.num_linear_bins

        def blocks(count: int) -> nn.Sequential:
            return nn.Sequential(
                *(ConvNextBlock(width=width, hidden=config.hidden, kernel=config.kernel) for _ in range(count))
            )

        self.spectrum = Spectrum(config)
        self.encoder_in = nn.Linear(num_inputs, width)
        self.encoder_fine = blocks(config.encoder_fine_blocks)
        self.encoder_merge = nn.Linear(2 * width, width)
        self.encoder_coarse = blocks(config.encoder_coarse_blocks)
        self.encoder_norm = nn.LayerNorm(width)
        self.encoder_out = nn.Linear(width, config.latent_dim)
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))
        self.codebooks = ResidualCodebooks(config)
        self.decoder_in = nn.Linear(config.latent_dim, width)
        self.decoder_coarse = blocks(config.decoder_coarse_blocks)
        self.decoder_split = nn.Linear(width, 2 * width)
        self.decoder_fine = blocks(config.decoder_fine_blocks)
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_out = nn.Linear(width, num_outputs)
        with torch.no_grad():  # training starts from a quiet sound
            self.decoder_out.weight.mul_(0.1)
            self.decoder_out.bias[-config.num_bands :] = -3

    @property
    def encode_reach_frames(self) -> int:
        """Latent frames of real sound needed on each side of a window for `encode` to be exact between."""
        config = self.config
        return config.reach_frames(fine_blocks=config.encoder_fine_blocks, coarse_blocks=config.encoder_coarse_blocks)

    @property
    def decode_reach_frames(self) -> int:
        """The same for `decode`."""
        config = self.config
        return config.reach_frames(fine_blocks=config.decoder_fine_blocks, coarse_blocks=config.decoder_coarse_blocks)

    def encode(self, audio: Float[Tensor, "batch 1 time"]) -> Float[Tensor, "batch latent frame"]:
        """Latents of mono sound at `config.rate_hz` whose length is a multiple of `config.hop_samples`."""
        if audio.shape[-1] % self.config.hop_samples or audio.shape[-1] == 0:
            raise ValueError(
                f"sound of {audio.shape[-1]} samples is not a multiple of hop_samples={self.config.hop_samples}: "
                f"pad it with zeros"
            )
        # The spectrum needs the audio's precision: there is no FFT in half, and quiet powers are zero there.
        raw = self.raw_latents(self.spectrum.analyse(audio).to(self.latent_mean.dtype))
        return (raw - self.latent_mean[:, None]) / self.latent_std[:, None]

    def raw_latents(self, features: Float[Tensor, "batch halfframe feature"]) -> Float[Tensor, "batch latent frame"]:
        """The trained part of `encode`: latents before they are centred and scaled."""
        x = self.encoder_fine(self.encoder_in(features))
        x = self.encoder_coarse(self.encoder_merge(x.unflatten(1, (-1, 2)).flatten(2)))
        raw: Tensor = self.encoder_out(self.encoder_norm(x))
        return raw.transpose(1, 2)

    def quantize(self, latents: Float[Tensor, "batch latent frame"]) -> Int64[Tensor, "batch codebook frame"]:
        """Codes of latents, coarsest codebook first."""
        return self.codebooks.quantize(latents)

    def dequantize(self, codes: Int64[Tensor, "batch codebook frame"]) -> Float[Tensor, "batch latent frame"]:
        """Latents of codes; the last codebooks may be left away."""
        return self.codebooks.dequantize(codes)

    def decode(self, latents: Float[Tensor, "batch latent frame"]) -> Float[Tensor, "batch 1 time"]:
        """Sound of latents, `config.hop_samples` samples per frame."""
        return self.spectrum.synthesise(self.decoded_features(latents))

    def decoded_features(
        self, latents: Float[Tensor, "batch latent frame"]
    ) -> Float[Tensor, "batch halfframe feature"]:
        """The trained part of `decode`."""
        x = self.decoder_split(self.decoder_coarse(self.decoder_in(latents.transpose(1, 2))))
        x = self.decoder_fine(x.unflatten(2, (2, -1)).flatten(1, 2))
        features: Tensor = self.decoder_out(self.decoder_norm(x))
        return features


def load_woodshed_tiny(*, device: str | torch.device = "cpu") -> TinyCodec:
    """The trained codec that ships in this package, in float32 and ready to use.

    >>> codec = load_woodshed_tiny()
    >>> codec.encode(torch.zeros(1, 1, 4800)).shape
    torch.Size([1, 64, 10])
    """
    with as_file(files("woodshed") / "assets" / "woodshed-tiny.safetensors") as path:
        return load_tiny_codec(path).to(device)


def load_tiny_codec(path: Path) -> TinyCodec:
    """A codec from a file of `save_tiny_codec`, in float32; missing or extra weights are an error."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        config = TinyCodecConfig(**json.loads(file.metadata()["config"]))
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    scales = {name: stored.pop(name + SCALE_SUFFIX).float() for name in list(stored) if name + SCALE_SUFFIX in stored}
    weights = {name: tensor.float() * scales.get(name, 1.0) for name, tensor in stored.items()}
    codec = TinyCodec(config)
    codec.load_state_dict(weights, strict=True)
    return codec.eval().requires_grad_(False)


def save_tiny_codec(codec: TinyCodec, path: Path) -> None:
    """Write weights and configuration: large matrices as bytes with a scale per row, the rest in half precision."""
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    for name, tensor in codec.state_dict().items():
        if is_stored_as_bytes(name, tensor):
            steps, scale = to_bytes(tensor)
            stored |= {name: steps, name + SCALE_SUFFIX: scale}
        else:
            stored[name] = tensor.half().contiguous()
    save_file(stored, path, metadata={"config": json.dumps(asdict(codec.config))})


def is_stored_as_bytes(name: str, tensor: Tensor) -> bool:
    """Large matrices, but for the last one, where rounding would be heard."""
    return tensor.ndim == 2 and tensor.numel() > 100_000 and name != "decoder_out.weight"


def to_bytes(matrix: Float[Tensor, "row column"]) -> tuple[Int8[Tensor, "row column"], Float16[Tensor, "row 1"]]:
    """Whole steps between -127 and 127, and the size of a step in each row."""
    scale = (matrix.abs().amax(1, keepdim=True) / 127).clamp_min(1e-6).half()
    return torch.round(matrix / scale.float()).clamp(-127, 127).to(torch.int8), scale
