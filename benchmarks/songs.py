"""`woodshed songs` beside a plain loop: CPU time, memory, and distance of the latents from an unchunked encode.

    python -m benchmarks.songs

Both sides prepare the same songs with the same random weights of the true classes, one compute thread each, in fresh
processes that take turns. CPU time, user and system, counts from the moment when all is imported. The plain loop does
what the original preprocessing does: a song as a whole in memory, tiles of 30 s that overlap by 2 s on each side, texts
padded to 256 and 512 tokens, one file per song.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402

from benchmarks.clips import wave, write  # noqa: E402
from benchmarks.measuring import cpu_s, describe_machine, peak_mib, save_table  # noqa: E402

RATE_HZ, HOP = 48_000, 1920
DURATIONS_S = (41.0, 65.0, 97.0)
"""Of the songs; none is a whole number of tiles."""
TILE_S, OVERLAP_S = 30, 2
REPETITIONS = 3
SIDECAR = "caption: a warm lo-fi piano\nbpm: 85\nkey: C minor\nlyrics:\n[Verse]\nThe rain in Spain\n"


def make_songs(folder: Path) -> None:
    folder.mkdir()
    for number, duration_s in enumerate(DURATIONS_S):
        path = folder / f"song-{number}.flac"
        write(path, wave(duration_s, RATE_HZ, 2, seed=number), RATE_HZ)
        path.with_suffix(".txt").write_text(SIDECAR)


def make_checkpoint(folder: Path) -> None:
    """A tiny ACE-Step whose autoencoder has the published strides at a quarter of the published width."""
    from dataclasses import replace

    import torch
    from diffusers import AutoencoderOobleck
    from tests.encoders.acestep.tiny_acestep import build_acestep, save_diffusers

    torch.manual_seed(0)
    vae = AutoencoderOobleck(
        encoder_hidden_size=32, downsampling_ratios=[2, 4, 4, 6, 10], channel_multiples=[1, 2, 4, 8, 16],
        decoder_channels=16, decoder_input_channels=16, audio_channels=2, sampling_rate=RATE_HZ,
    )  # fmt: skip
    save_diffusers(replace(build_acestep(), vae=vae.eval()), folder)


def plain(songs: Path, checkpoint: Path, output: Path) -> None:
    """A short script with diffusers' and transformers' own classes."""
    import soundfile
    import torch
    from diffusers import AutoencoderOobleck
    from diffusers.pipelines.ace_step import AceStepConditionEncoder
    from transformers import AutoTokenizer, Qwen3Model

    vae = AutoencoderOobleck.from_pretrained(checkpoint / "vae").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    text_encoder = Qwen3Model.from_pretrained(checkpoint / "text_encoder").eval()
    encoder = AceStepConditionEncoder.from_pretrained(checkpoint / "condition_encoder").eval()
    output.mkdir()
    for path in sorted(songs.glob("*.flac")):
        audio, _ = soundfile.read(path, dtype="float32", always_2d=True)
        latents = tiled(vae, torch.from_numpy(audio.T.copy())[None])
        with torch.no_grad():
            text = tokenizer(SIDECAR, padding="max_length", max_length=256, truncation=True, return_tensors="pt")
            lyric = tokenizer(SIDECAR, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
            states, mask = encoder(
                text_hidden_states=text_encoder(text.input_ids).last_hidden_state,
                text_attention_mask=text.attention_mask,
                lyric_hidden_states=text_encoder.get_input_embeddings()(lyric.input_ids),
                lyric_attention_mask=lyric.attention_mask,
                refer_audio_acoustic_hidden_states_packed=torch.zeros(1, 1, latents.shape[1]),
                refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
            )
        context = torch.cat([encoder.silence_latent[0, : latents.shape[-1]], torch.ones(latents.shape[-1], 16)], -1)
        made = {"target_latents": latents[0].T, "encoder_hidden_states": states[0], "encoder_attention_mask": mask[0]}
        torch.save({**made, "context_latents": context}, output / f"{path.stem}.pt")


def tiled(vae: Any, audio: Any) -> Any:
    """Means of tiles with their overlaps cut off, put together."""
    import torch

    size, overlap = TILE_S * RATE_HZ, OVERLAP_S * RATE_HZ
    parts, length = [], audio.shape[-1]
    for start in range(0, length, size - 2 * overlap):
        stop = min(start + size - 2 * overlap, length)
        begin = max(0, start - overlap)
        with torch.inference_mode():
            frames = vae.encode(audio[..., begin : min(length, stop + overlap)]).latent_dist.mean
        first = round((start - begin) / HOP)
        parts.append(frames[..., first : first + (stop - start) // HOP])
    return torch.cat(parts, dim=-1)


def ours(songs: Path, checkpoint: Path, output: Path) -> None:
    import woodshed

    woodshed.prepare_songs(songs, output, checkpoint_dir=str(checkpoint), device="cpu")


def one(side: str, songs: Path, checkpoint: Path, output: Path) -> dict[str, float]:
    import diffusers  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import woodshed.jobs.songs  # noqa: F401

    torch.set_num_threads(1)
    started_s, before_mib = cpu_s(), peak_mib()
    {"plain loop": plain, "woodshed": ours}[side](songs, checkpoint, output)
    return {"cpu_s": cpu_s() - started_s, "memory_mib": peak_mib() - before_mib}


def stored(side: str, output: Path) -> Iterator[tuple[np.ndarray, int, int]]:
    """Of each song: latent means (latent, frame), tokens that are stored, and how many of them are padding."""
    import torch

    import woodshed

    if side == "woodshed":
        dataset = woodshed.open(output, sample=False)
        for song in sorted((dataset[index] for index in range(len(dataset))), key=lambda song: song["info"]["id"]):
            yield song["latents"].numpy(), len(song["condition"]), 0
        return
    for path in sorted(output.glob("*.pt")):
        song = torch.load(path, weights_only=True)
        mask = song["encoder_attention_mask"].bool()
        yield song["target_latents"].T.numpy(), mask.numel(), int((~mask).sum())


def unchunked(songs: Path, checkpoint: Path) -> list[np.ndarray]:
    import soundfile
    import torch
    from diffusers import AutoencoderOobleck

    vae = AutoencoderOobleck.from_pretrained(checkpoint / "vae").eval()
    made = []
    for path in sorted(songs.glob("*.flac")):
        audio = torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T.copy())[None]
        with torch.inference_mode():
            made.append(vae.encode(audio).latent_dist.mean[0].numpy())
    return made


def rows(folder: Path) -> Iterator[str]:
    songs, checkpoint = folder / "songs", folder / "checkpoint"
    make_songs(songs)
    make_checkpoint(checkpoint)
    runs: dict[str, list[dict[str, float]]] = {"plain loop": [], "woodshed": []}
    for number in range(REPETITIONS):
        for side, found in runs.items():
            words = [side, str(songs), str(checkpoint), str(folder / f"{side} {number}")]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "benchmarks.songs", "--one", *words]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    yield f"{len(DURATIONS_S)} songs, {sum(DURATIONS_S):.0f} s in all"
    yield ""
    yield "| side | CPU s (all runs) | times better | memory | max difference | tokens | of them padding |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    truth = unchunked(songs, checkpoint)
    base = statistics.median(run["cpu_s"] for run in runs["plain loop"])
    for side, found in runs.items():
        median = statistics.median(run["cpu_s"] for run in found)
        shown = ", ".join(f"{run['cpu_s']:.1f}" for run in found)
        made = list(stored(side, folder / f"{side} 0"))
        error = max(
            float(np.abs(latents[:, : right.shape[1]] - right[:, : latents.shape[1]]).max() / right.std())
            for (latents, _, _), right in zip(made, truth, strict=True)
        )
        yield (
            f"| {side} | {median:.1f} ({shown}) | {base / median:.2f} "
            f"| {max(run['memory_mib'] for run in found):.0f} MiB | {error:.1e} std "
            f"| {sum(tokens for _, tokens, _ in made)} | {sum(padding for _, _, padding in made)} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="write the table into this file as well")
    parser.add_argument("--one", nargs=4, metavar=("SIDE", "SONGS", "CHECKPOINT", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        side, *folders = arguments.one
        print(json.dumps(one(side, *map(Path, folders))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        lines = [describe_machine("cpu"), "", *rows(Path(temporary))]
    print(*lines, sep="\n")
    if arguments.save:
        save_table(arguments.save, "songs.py", argv or sys.argv[1:], lines)


if __name__ == "__main__":
    main()
