"""Base models by name: what analysis and fine-tuning are pointed at."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from woodshed.contracts import Trainable
from woodshed.errors import UsageError

BACKENDS = ("acestep", "stable-audio", "whisper", "woodshed-tiny-dit")
"""Names that `open_backend` knows, beside `module:callable`."""
NEED_A_CHECKPOINT = ("acestep", "stable-audio")
"""Of those, whose weights no package brings along."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_backend(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    variant: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
) -> Trainable:
    """Load a base model.

    Args:
        name: one of `BACKENDS` (underscores will do), `module:callable` or `path/to/file.py:callable`.
        checkpoint: folder or hub name; `acestep` and `stable-audio` need one, `whisper` may have one.
        variant: of `acestep`, where a folder holds several: `base`, `xl-turbo`, ...
        dtype: `fp32`, `bf16` or `fp16`: what the network computes in.
        trust_remote_code: whether code that a checkpoint brings along may run.

    Raises:
        UsageError: an unknown name, or an argument that this model has no use for or needs.
        ModelError: it cannot be loaded.
    """
    if dtype not in PRECISIONS:
        raise UsageError(f"there is no precision {dtype!r}", hint=f"one of {', '.join(PRECISIONS)}")
    if ":" in name:
        from woodshed.backends.own import load_own

        return load_own(name, checkpoint=checkpoint, variant=variant, device=device, dtype=PRECISIONS[dtype])
    kind = name.replace("_", "-").lower()
    if kind not in BACKENDS:
        near = difflib.get_close_matches(kind, BACKENDS, n=1)
        known = f"one of {', '.join(BACKENDS)}, or module:callable for a model of your own"
        raise UsageError(f"there is no base model {name!r}", hint=f"is it {near[0]!r}? {known}" if near else known)
    _check(kind, checkpoint, variant, dtype)
    match kind:
        case "acestep":
            from woodshed.backends.acestep import load_acestep

            assert checkpoint is not None
            return load_acestep(
                checkpoint,
                variant=variant,
                device=device,
                dtype=PRECISIONS[dtype],
                trust_remote_code=trust_remote_code,
            )
        case "stable-audio":
            from woodshed.backends.stable_audio import load_stable_audio

            assert checkpoint is not None
            return load_stable_audio(checkpoint, device=device, dtype=PRECISIONS[dtype])
        case "whisper":
            from woodshed.backends.whisper import load_whisper

            path = None if checkpoint is None else Path(checkpoint)
            return load_whisper(path, device=device, dtype=PRECISIONS[dtype])
        case _:
            from woodshed.backends.tiny_dit import woodshed_tiny_dit

            return woodshed_tiny_dit(device=device)


def _check(kind: str, checkpoint: str | Path | None, variant: str | None, dtype: str) -> None:
    if checkpoint is None and kind in NEED_A_CHECKPOINT:
        raise UsageError(f"{kind} needs a checkpoint", hint="give its folder, or a hub name such as owner/model")
    if checkpoint is not None and kind == "woodshed-tiny-dit":
        raise UsageError("woodshed-tiny-dit comes with its weights and takes no checkpoint", hint="leave it out")
    if variant is not None and kind != "acestep":
        raise UsageError(f"{kind} has no variants, but {variant!r} was asked for", hint="leave the variant out")
    if dtype != "fp32" and kind == "woodshed-tiny-dit":
        raise UsageError(f"woodshed-tiny-dit computes in fp32 only, not in {dtype}", hint="leave the precision out")
