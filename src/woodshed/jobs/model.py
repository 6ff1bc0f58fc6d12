"""From settings to an encoder: which model, on which device, cut in which windows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from woodshed.audio.clip import file_digest
from woodshed.audio.decode import DecodeLimits
from woodshed.contracts import Encoder, Json
from woodshed.encoders.autoencoder import FrameEncoder, FrameModel, FrameOptions
from woodshed.encoders.checkpoints import Autoencoder, Parts, load_autoencoder
from woodshed.encoders.codec import ClipEncoder
from woodshed.encoders.codec_networks import ClipNetwork, load_codec
from woodshed.encoders.logmel import LogMel, LogMelConfig
from woodshed.encoders.models import OobleckModel, Synthesiser, TinyModel
from woodshed.encoders.pretrained import load_pretrained
from woodshed.encoders.snake import compile_snake
from woodshed.encoders.tiny import TinyCodecConfig, load_woodshed_tiny
from woodshed.errors import UsageError
from woodshed.jobs.complaints import closest
from woodshed.jobs.settings import DEFAULT_MODEL, LOGMEL, EncodeSettings

WINDOW_S = 12.0
"""Longest window; a folder that one device has begun can be finished on another. Context takes a twentieth of it with
the reach of Stable Audio Open, and memory stays small: the widest activations of that model fill 135 MB."""
BATCH_S = {"cpu": 12.0, "cuda": 96.0, "mps": 24.0}
"""Audio per batch that is tried first; the engine lowers it where memory runs out."""
WAITING_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20, "mps": 64 * 2**20}
"""Decoded audio that may wait for the device: a few batches. An hour-long file fills it, whatever it is."""
CLIP_BATCH_S = {"cpu": 30.0, "cuda": 240.0, "mps": 60.0}
"""The same for codecs that see whole clips: attention and recurrence need few channels but the whole length."""
QUANTUM_FRAMES = 8
TINY_CHANNELS = 2
SLOW_HALF = "most CPUs have no fast arithmetic for it"

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that encodes, and what a folder's `details.json` says of it."""

    encoder: Encoder
    window_samples: int | None
    """None where a file is one record."""
    batch_s: float
    model_config: Mapping[str, Json]
    notes: tuple[str, ...] = ()


def pick_device(name: str) -> torch.device:
    """The device for `--device`.

    Raises:
        UsageError: the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices", hint="--device cpu, or auto"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no Apple GPU", hint="--device cpu, or auto")
    return torch.device(name)


def load_encoder(settings: EncodeSettings, *, crop_at_random: bool = True) -> LoadedModel:
    """The encoder that the settings ask for.

    Args:
        crop_at_random: whether the data set asks for random crops; heard under `compat` only.

    Raises:
        UsageError: settings and model do not go together.
        ModelError: the model cannot be loaded.
    """
    device = pick_device(settings.device)
    limits = DecodeLimits(max_duration_s=settings.max_file_s)
    name = settings.pretrained_name
    if name == LOGMEL:
        return _load_logmel(settings, device, limits)
    if name is not None and name != DEFAULT_MODEL and "/" not in name and not Path(name).is_dir():
        meant = closest(name, (DEFAULT_MODEL, LOGMEL))
        raise UsageError(
            f"--pretrained-name {name} is no model of ours, no folder here, and no hub name (OWNER/NAME)",
            hint=f"did you mean {meant}?" if meant else f"{DEFAULT_MODEL}, {LOGMEL}, a folder, or OWNER/NAME",
        )
    if name is not None and is_codec(name):
        loaded = _load_codec(settings, name, device, limits)
        return replace(loaded, notes=(*loaded.notes, *_precision_notes(settings, device)))
    if settings.model_options:
        raise UsageError(
            f"--model-options {' '.join(settings.model_options)}: this model has none", hint="leave it out"
        )
    model = _load_frame_model(settings, device)
    options = _options(settings, model.rate_hz, model.hop_samples, crop_at_random=crop_at_random)
    tokens_last = settings.compat and isinstance(model, OobleckModel) and model.writes_tokens_last
    options = replace(fit_window(options, model), tokens_last=tokens_last)
    return LoadedModel(
        encoder=FrameEncoder(model, options, limits=limits),
        window_samples=None if options.record_frames is None else options.record_frames * model.hop_samples,
        batch_s=_batch_s(options, model, device),
        model_config=dict(model.autoencoder.config) if isinstance(model, OobleckModel) else {"name": DEFAULT_MODEL},
        notes=(
            *((f"weights: {model.autoencoder.source}",) if isinstance(model, OobleckModel) else ()),
            *_precision_notes(settings, device),
        ),
    )


def _precision_notes(settings: EncodeSettings, device: torch.device) -> tuple[str, ...]:
    if device.type == "cpu" and settings.precision != "fp32":
        return (f"{settings.precision} on a CPU: {SLOW_HALF}; --precision fp32 is exact and not slower",)
    return ()


def _options(settings: EncodeSettings, rate_hz: int, ratio: int, *, crop_at_random: bool) -> FrameOptions:
    frames = None
    if settings.window != "whole":
        frames = settings.window_samples(rate_hz=rate_hz, ratio=ratio) // ratio
    return FrameOptions(
        window=settings.window,
        record_frames=frames,
        latents=settings.latents,
        seed=settings.seed,
        resampler=settings.resampler,
        pad_last=settings.layout == "stable_audio",
        drop_silence=settings.drop_silence,
        dtype="float16" if settings.precision == "fp16" else "float32",
        random_crop=settings.compat and crop_at_random,
        polarity_flip=settings.compat,
    )


def fit_window(options: FrameOptions, model: FrameModel) -> FrameOptions:
    """A window in whole quanta, near the best length, never so short that context outweighs what is kept."""
    frame_s = model.hop_samples / model.rate_hz
    window = max(round(WINDOW_S / frame_s), 6 * model.reach_frames, 4 * QUANTUM_FRAMES)
    return replace(options, window_frames=-(-window // QUANTUM_FRAMES) * QUANTUM_FRAMES, quantum_frames=QUANTUM_FRAMES)


def _batch_s(options: FrameOptions, model: FrameModel, device: torch.device) -> float:
    return max(BATCH_S[device.type], options.window_frames * model.hop_samples / model.rate_hz)


def _load_frame_model(settings: EncodeSettings, device: torch.device) -> OobleckModel | TinyModel:
    if settings.pretrained_name == DEFAULT_MODEL:
        config = TinyCodecConfig()
        _check(settings, config.rate_hz, config.hop_samples, channels=TINY_CHANNELS, discrete=True, any_channels=True)
        return load_tiny(settings, device, DTYPES[settings.precision])
    own = load_own_autoencoder(settings, "encoder", device, DTYPES[settings.precision])
    bottleneck = own.bottleneck
    _check(
        settings,
        own.rate_hz,
        own.ratio,
        channels=own.audio_channels,
        discrete=bottleneck.kind == "tokens",
        moments="mean"
        in bottleneck.analyse(torch.zeros(1, bottleneck.input_dim, 1, dtype=own.dtype, device=own.device)),
    )
    if settings.compile and own.encoder is not None:
        _compile(own)
    return OobleckModel(own, discrete=settings.is_discrete, compiled=settings.compile)


def _compile(model: Autoencoder) -> None:
    """Compile the encoder, and run it once: the compiler starts at the first call only.

    Raises:
        UsageError: the compiler does not work.
    """
    from torch._dynamo.exc import TorchDynamoException  # a second to import

    assert model.encoder is not None
    compile_snake(model.encoder)
    try:
        with torch.inference_mode():
            model.encode(torch.zeros(1, model.audio_channels, model.ratio, dtype=model.dtype, device=model.device))
    except (TorchDynamoException, ImportError, OSError) as error:
        raise UsageError(
            f"--compile: torch's compiler does not work here: {str(error).strip().splitlines()[0]}",
            hint="leave --compile out; or install a C++ compiler, or empty the folder that torch keeps kernels in",
        ) from error


def load_tiny(settings: EncodeSettings, device: torch.device, dtype: torch.dtype) -> TinyModel:
    """The embedded model, over the channels that the settings ask for."""
    codec = load_woodshed_tiny(device=device).to(dtype)
    channels = settings.channels or TINY_CHANNELS
    return TinyModel(codec, channels=channels, discrete=settings.is_discrete, digest=tiny_digest())


def load_own_autoencoder(
    settings: EncodeSettings, parts: Parts, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    """The autoencoder that the settings name, by config and checkpoint or by name."""
    if settings.ckpt_path is not None:
        assert settings.model_config_path is not None
        return load_autoencoder(
            Path(settings.model_config_path), Path(settings.ckpt_path), parts=parts, dtype=dtype, device=device
        )
    assert settings.pretrained_name is not None
    return load_pretrained(settings.pretrained_name, parts=parts, dtype=dtype, device=device)


def _check(
    settings: EncodeSettings,
    rate_hz: int,
    ratio: int,
    *,
    channels: int,
    discrete: bool,
    moments: bool = False,
    any_channels: bool = False,
) -> None:
    settings.validate_for_model(
        rate_hz=rate_hz,
        ratio=ratio,
        audio_channels=channels,
        is_discrete_capable=discrete,
        has_moments=moments,
        takes_any_channels=any_channels,
    )


def is_codec(name: str) -> bool:
    """Whether a folder or hub name holds a model of the transformers library: its config names a `model_type`."""
    folder = Path(name)
    if name == DEFAULT_MODEL or (folder / "model_config.json").is_file():
        return False
    path = folder / "config.json"
    if not folder.is_dir():
        try:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(name, "config.json"))
        except (ImportError, OSError, ValueError, RuntimeError):
            return False  # the autoencoder's loader says what is wrong
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config and "_class_name" not in config


def _load_logmel(settings: EncodeSettings, device: torch.device, limits: DecodeLimits) -> LoadedModel:
    """Log-mel spectra: one record per file, of any length."""
    wrong = {"first": settings.window == "first", "is-discrete": settings.is_discrete, "compat": settings.compat}
    for name, asked in wrong.items():
        if asked:
            raise UsageError(f"--pretrained-name {LOGMEL} does not go with {name}", hint="leave it out")
    options = read_options(settings.model_options, [field.name for field in fields(LogMelConfig)], model=LOGMEL)
    try:
        config = TypeAdapter(LogMelConfig).validate_python(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"--model-options {first['loc'][0]}={first['input']}: {first['msg']}") from error
    encoder = LogMel(config, device=str(device), resampler=settings.resampler, limits=limits)
    notes = () if settings.window == "whole" else (f"{LOGMEL} gives one record per file",)
    return LoadedModel(
        encoder=encoder,
        window_samples=None,
        batch_s=BATCH_S[device.type],
        model_config={"name": LOGMEL, **asdict(config)},
        notes=notes,
    )


def read_options(texts: Sequence[str], known: Collection[str], *, model: str) -> dict[str, Any]:
    """`NAME=VALUE` texts as values: numbers, true, false and null as in YAML, and text.

    >>> read_options(["n_fft=2048", "fmax_hz=null"], ["n_fft", "fmax_hz"], model="logmel")
    {'n_fft': 2048, 'fmax_hz': None}

    Raises:
        UsageError: not of this form, or an unknown name.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            meant = closest(name, known)
            raise UsageError(
                f"--model-options {text}: {model} knows no such option",
                hint=f"did you mean {meant}=...?" if meant else f"NAME=VALUE of {', '.join(sorted(known))}",
            )
        found[name] = yaml.safe_load(value)
    return found


def _load_codec(settings: EncodeSettings, name: str, device: torch.device, limits: DecodeLimits) -> LoadedModel:
    network = load_codec(name, device=str(device), dtype=DTYPES[settings.precision], **_codec_options(settings, name))
    tokens = settings.model_copy(update={"is_discrete": True})
    _check(tokens, network.rate_hz, network.hop_samples, channels=network.channels, discrete=True)
    options = _options(settings, network.rate_hz, network.hop_samples, crop_at_random=False)
    if settings.compat:
        raise UsageError("--compat copies stable-audio-tools, which has no such codec", hint="leave --compat out")
    encoder: ClipEncoder | FrameEncoder
    if isinstance(network, ClipNetwork):
        encoder, batch_s = ClipEncoder(network, options, limits=limits), CLIP_BATCH_S[device.type]
    else:
        options = fit_window(options, network)
        encoder, batch_s = FrameEncoder(network, options, limits=limits), _batch_s(options, network, device)
    return LoadedModel(
        encoder=encoder,
        window_samples=None if options.record_frames is None else options.record_frames * network.hop_samples,
        batch_s=batch_s,
        model_config={"pretrained_name": Path(name).name if Path(name).is_dir() else name},
        notes=() if settings.is_discrete else (f"{name} is a codec: its tokens are stored",),
    )


def _codec_options(settings: EncodeSettings, name: str) -> dict[str, Any]:
    return read_options(settings.model_options, ("num_codebooks", "bandwidth_kbps"), model=name)


def tiny_digest() -> str:
    """Digest of the embedded weights."""
    with as_file(files("woodshed.assets") / "woodshed-tiny.safetensors") as path:
        return file_digest(str(path))


def load_synthesiser(settings: EncodeSettings, device: torch.device) -> Synthesiser | ClipNetwork:
    """The decoder that belongs to what these settings encoded.

    Raises:
        ModelError: the model cannot be loaded, or has no decoder.
    """
    name = settings.pretrained_name
    if name == LOGMEL:
        raise UsageError("log-mel spectra cannot be decoded: they hold no phase", hint="use a vocoder of your own")
    if name == DEFAULT_MODEL:
        return load_tiny(settings, device, torch.float32)
    if name is not None and is_codec(name):
        return load_codec(name, device=str(device), **_codec_options(settings, name))
    own = load_own_autoencoder(settings, "both", device, torch.float32)
    return OobleckModel(own, discrete=settings.is_discrete)
