"""Train woodshed-tiny on the arrays that `data.py` made. Can be stopped at any time and run again to go on.

    python recipes/woodshed_tiny/train.py --work /somewhere/big --minutes 100

The learning rate follows the clock, so `--minutes` is what a run costs on any machine. Run with more minutes to go on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from data import RATE_HZ, Clip, load_clips
from torch import Tensor

from woodshed.audio.distance import log_mel_distance_db, mel_bands, si_sdr_db
from woodshed.encoders.tiny import ResidualCodebooks, TinyCodec, TinyCodecConfig

CROP_SAMPLES = RATE_HZ
BATCH = 10
"""Crops per worker and step."""
PEAK_RATE = 1.5e-3
LATENT_NOISE = 0.005
CODEBOOKS_FROM = 0.1
"""Share of the run after which codebooks are fitted to the latents and trained along."""
FREEZE_SCALE_FROM = 0.12
"""Share of the run after which the latents are scaled by fixed numbers, not by those of the batch, which jitter."""
SCALE_WEIGHT = 2.0
"""Holds the scaled latents near unit power: without it they grow to outshout the noise (measured: 3.8 times)."""
SNR_WEIGHT = 8.0
CODED_SNR_WEIGHT = 1.0
"""Decibels on the waveform against decibels on the log-mel spectrum: for the latents, and for the codebooks."""
WAVEFORM_FIRST = 0.05
"""Share of the run in which the waveform counts most: phases are found then or never."""
KIND_SHARES = {"speech": 0.44, "music": 0.48, "hits": 0.08}
PACKAGE_SHARES = {
    "fretsonfire-songs-sectoid": 0.2,
    "fretsonfire-songs-muldjord": 0.2,
    "singularity-music": 0.45,
    "asterisk-moh-opsound-g722": 0.15,
}


class Crops:
    """Random one-second crops with light augmentation."""

    def __init__(self, clips: list[tuple[Clip, np.ndarray]], *, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        chosen = [(clip, samples) for clip, samples in clips if clip.split == "train"]
        weights = np.zeros(len(chosen))
        for kind, share in KIND_SHARES.items():
            packages = {clip.package for clip, _ in chosen if clip.kind == kind}
            for package in packages:
                rows = [i for i, (clip, _) in enumerate(chosen) if clip.package == package]
                lengths = np.array([chosen[i][0].num_samples for i in rows], np.float64)
                if kind == "hits":
                    lengths = np.sqrt(lengths)
                weights[rows] = share * PACKAGE_SHARES.get(package, 1 / len(packages)) * lengths / lengths.sum()
        self.samples = [samples for _, samples in chosen]
        self.bounds = np.cumsum(weights / weights.sum())

    def one(self) -> np.ndarray:
        """One crop with a random speed and direction."""
        chance = self.chance
        speed = float(chance.uniform(0.75, 1.35)) if chance.random() < 0.4 else 1.0
        needed = math.ceil(CROP_SAMPLES * speed) + 8
        source = self.samples[min(int(np.searchsorted(self.bounds, chance.random())), len(self.samples) - 1)]
        start = int(chance.integers(-needed // 8, max(len(source) - needed * 7 // 8, 1)))
        piece = source[max(start, 0) : start + needed].astype(np.float32) / 32768
        if speed != 1.0:
            piece = soxr.resample(piece, speed, 1.0, quality="MQ")
        crop = np.zeros(CROP_SAMPLES, np.float32)
        offset = max(-start, 0) if len(piece) < CROP_SAMPLES else 0
        piece = piece[: CROP_SAMPLES - offset]
        crop[offset : offset + len(piece)] = piece
        if chance.random() < 0.1:
            crop = crop[::-1]
        return self.other_room(crop) if chance.random() < 0.3 else crop

    def other_room(self, crop: np.ndarray) -> np.ndarray:
        """Another microphone: a smooth random equaliser, at times a narrower band or some hiss."""
        chance = self.chance
        hz = np.fft.rfftfreq(CROP_SAMPLES, 1 / RATE_HZ)
        gains_db = np.interp(np.log2(hz + 50), np.linspace(5.6, 13.6, 7), chance.normal(0, 5, 7))
        if chance.random() < 0.35:
            gains_db = gains_db - np.clip((hz - chance.uniform(3000, 11_000)) / 10, 0, 120)
        peak = float(np.abs(crop).max())
        if chance.random() < 0.4:
            level = float(np.sqrt(np.mean(crop * crop))) * 10 ** (-chance.uniform(15, 50) / 20)
            crop = crop + level * chance.standard_normal(CROP_SAMPLES, dtype=np.float32)
        spectrum = np.fft.rfft(crop) * (10 ** (gains_db / 20)).astype(np.float32)
        crop = np.fft.irfft(spectrum, CROP_SAMPLES)
        return crop * (peak / max(float(np.abs(crop).max()), 1e-9))

    def batch(self, size: int) -> Tensor:
        """`[batch, 1, time]`; a fifth are mixes of two crops, all get a random gain."""
        chance, crops = self.chance, []
        while len(crops) < size:
            crop = self.one() * chance.choice([-1, 1])
            if chance.random() < 0.2:
                crop = crop + self.one() * 10 ** (chance.uniform(-15, 0) / 20)
            peak = float(np.abs(crop).max())
            if peak < 2e-3:
                continue
            # Music and prompts come near full scale: mostly keep them there.
            crops.append(crop * min(10 ** (chance.uniform(-20, 3) / 20), 0.999 / peak))
        return torch.from_numpy(np.stack(crops).astype(np.float32))[:, None]


class LogMelLoss:
    """Mean absolute difference of log-mel spectra in dB, at one resolution."""

    def __init__(self, *, n_fft: int, num_mels: int) -> None:
        self.n_fft = n_fft
        self.window = torch.hann_window(n_fft)
        self.bands = torch.from_numpy(mel_bands(rate_hz=RATE_HZ, num_mels=num_mels, n_fft=n_fft)).float().T.contiguous()

    def power(self, audio: Tensor) -> Tensor:
        frames = audio[:, 0].unfold(1, self.n_fft, self.n_fft // 4) * self.window
        return torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1) @ self.bands

    def __call__(self, wanted: Tensor, got: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self.power(wanted)
            floor = reference.amax((1, 2), keepdim=True) * 10**-8.3 + 1e-9
            reference = torch.log10(reference + floor)
        return 10 * (torch.log10(self.power(got) + floor) - reference).abs().mean()


def snr_db(wanted: Tensor, got: Tensor) -> Tensor:
    """Signal to error ratio per item, at most 30 dB, with silence forgiven."""
    power = wanted.square().mean((1, 2))
    error = (got - wanted).square().mean((1, 2))
    return -10 * torch.log10((error + 1e-3 * power + 1e-8) / (power + 1e-8))


class Trainer:
    """Model, optimiser, averages and clock; `step` does one batch."""

    def __init__(self, *, budget_s: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.codec = TinyCodec(TinyCodecConfig())
        self.average = copy.deepcopy(self.codec).requires_grad_(False)
        # Matrices between layers go to Muon, everything else (ends, biases, norms, codes) to AdamW.
        matrices = [p for name, p in self.codec.named_parameters() if p.ndim == 2 and "mix" not in name]
        others = [p for name, p in self.codec.named_parameters() if p.ndim != 2 or "mix" in name]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=0.0, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.losses = {
            1024: LogMelLoss(n_fft=1024, num_mels=80),
            256: LogMelLoss(n_fft=256, num_mels=32),
            512: LogMelLoss(n_fft=512, num_mels=64),
            2048: LogMelLoss(n_fft=2048, num_mels=128),
        }
        self.budget_s = budget_s
        self.elapsed_s = 0.0
        self.steps = 0
        self.codebooks_ready = False
        self.usage = torch.ones(self.codec.config.num_codebooks, self.codec.config.codebook_size)

    @property
    def progress(self) -> float:
        return min(self.elapsed_s / self.budget_s, 1.0)

    def learning_rate(self) -> float:
        warm = min((self.steps + 1) / 300, 1.0)
        return PEAK_RATE * warm * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * self.progress)))

    def latents(self, audio: Tensor) -> Tensor:
        """Normalised latents; in the first part of the run by the batch's own statistics."""
        codec = self.codec
        with torch.no_grad():
            features = codec.spectrum.analyse(audio)
        with torch.autocast("cpu", torch.bfloat16):
            raw = codec.raw_latents(features)
        raw = raw.float()
        if self.progress > FREEZE_SCALE_FROM:
            return (raw - codec.latent_mean[:, None]) / codec.latent_std[:, None]
        mean, std = raw.mean((0, 2)), raw.std((0, 2)) + 1e-4
        with torch.no_grad():
            rate = max(0.01, 1 / (self.steps + 1))
            codec.latent_mean.lerp_(mean, rate)
            codec.latent_std.lerp_(std, rate)
        return (raw - mean[:, None]) / std[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            features = self.codec.decoded_features(latents)
        return self.codec.spectrum.synthesise(features.float())

    def through_codebooks(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Quantised latents (random number of codebooks, mostly all) and the codebooks' own losses."""
        books = self.codec.codebooks
        tables = books.entries()
        target = latents.detach().transpose(1, 2)
        total, prefixes, fits = torch.zeros_like(target), [], []
        for k, table in enumerate(tables):
            with torch.no_grad():
                rest = target - total
                index = (table.square().sum(1) - 2 * (rest @ table.T)).argmin(-1)
                self.usage[k].mul_(0.99).add_(torch.bincount(index.flatten(), minlength=len(table)), alpha=0.01)
            total = total + table[index]
            prefixes.append(total)
            fits.append((target - total).square().mean())
        batch, count = len(target), len(tables)
        depth = torch.full((batch,), count - 1)
        shallow = torch.rand(batch) < 0.25
        depth[shallow] = torch.randint(1, count, (int(shallow.sum()),))
        chosen = torch.stack(prefixes)[depth, torch.arange(batch)].transpose(1, 2)
        losses = {"fit": torch.stack(fits).mean(), "commit": (latents - chosen.detach()).square().mean()}
        # The decoder's gradient goes to the codes directly and to the encoder as if nothing had been rounded.
        return chosen + (latents - latents.detach()), losses

    def step(self, audio: Tensor) -> dict[str, float]:
        """One update; what happened, as plain numbers."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        latents = self.latents(audio)
        num_coded = len(audio) // 3 if self.codebooks_ready else 0
        plain = latents[num_coded:] + LATENT_NOISE * torch.randn_like(latents[num_coded:])
        parts, extra = [plain], {}
        if num_coded:
            coded, extra = self.through_codebooks(latents[:num_coded])
            parts = [coded, plain]
        got = self.decode(torch.cat(parts))
        mel = self.losses[1024](audio, got)
        snr = snr_db(audio, got)
        shift = min(max(self.progress / WAVEFORM_FIRST - 1, 0.0), 1.0)
        mel_weight = 0.1 + 0.9 * shift
        loss = mel_weight * mel - 0.5 * SNR_WEIGHT * snr[num_coded:].mean()
        if self.steps % 2:
            # A second resolution every other step, to save time.
            loss = loss + 0.6 * mel_weight * self.losses[[256, 512, 2048][self.steps // 2 % 3]](audio, got)
        if self.progress > FREEZE_SCALE_FROM:
            loss = loss + SCALE_WEIGHT * (latents.square().mean((0, 2)) - 1).clamp_min(0).square().mean()
        if num_coded:
            loss = loss + extra["fit"] + 0.5 * extra["commit"] - 0.5 * CODED_SNR_WEIGHT * snr[:num_coded].mean()
        self.codec.zero_grad(set_to_none=True)
        loss.backward()
        self.share()
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), 10.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        keep = min(0.998, self.steps / (self.steps + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.codec.parameters()), 1 - keep)
            for mine, theirs in zip(self.average.buffers(), self.codec.buffers(), strict=True):
                mine.copy_(theirs)
        if num_coded and self.steps % 100 == 0 and self.progress < 0.85:
            self.revive_codes(latents.detach())
            self.follow_first()
        seen = {
            "loss": float(loss.detach()),
            "mel": float(mel.detach()),
            "norm": float(norm),
            "snr_plain": float(snr[num_coded:].mean().detach()),
        }
        if num_coded:
            seen |= {"snr_coded": float(snr[:num_coded].mean().detach()), "fit_all": float(extra["commit"].detach())}
        return seen

    @torch.no_grad()
    def share(self) -> None:
        """Average over the workers what must stay equal: gradients, the latents' scale, the clock."""
        tensors = [p.grad for p in self.codec.parameters() if p.grad is not None]
        tensors += [self.codec.latent_mean, self.codec.latent_std, clock := torch.tensor([self.elapsed_s])]
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for tensor, mean in zip(
            tensors, (flat / dist.get_world_size()).split([t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))
        self.elapsed_s = float(clock)

    @torch.no_grad()
    def follow_first(self) -> None:
        """Take over the first worker's weights, after something that only chance decided."""
        for tensor in [*self.codec.parameters(), *self.average.parameters()]:
            dist.broadcast(tensor, 0)

    @torch.no_grad()
    def revive_codes(self, latents: Tensor) -> None:
        """Move codes that are almost never chosen onto leftovers of the present batch."""
        books, rest = self.codec.codebooks, latents.transpose(1, 2).flatten(0, 1)
        for k, table in enumerate(books.entries()):
            dead = self.usage[k] < 0.03 * self.usage[k].mean()
            if dead.any():
                drawn = rest[torch.randint(len(rest), (int(dead.sum()),))]
                books.codes[k, dead] = drawn @ torch.linalg.pinv(books.directions[k])
                self.average.codebooks.codes[k, dead] = books.codes[k, dead]
                self.usage[k, dead] = self.usage[k].mean()
            index = (table.square().sum(1) - 2 * (rest @ table.T)).argmin(-1)
            rest = rest - table[index]

    @torch.no_grad()
    def fit_codebooks(self, crops: Crops) -> None:
        """First guess: directions by principal components of what is left over, codes by k-means along them."""
        latents = torch.cat([self.latents(crops.batch(BATCH)) for _ in range(20)])
        fit_codebooks(self.codec.codebooks, latents.transpose(1, 2).flatten(0, 1))
        self.average.codebooks.load_state_dict(self.codec.codebooks.state_dict())
        self.follow_first()
        self.codebooks_ready = True

    def state(self) -> dict:
        return {
            "codec": self.codec.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "elapsed_s": self.elapsed_s,
            "steps": self.steps,
            "codebooks_ready": self.codebooks_ready,
            "usage": self.usage,
        }

    def restore(self, state: dict) -> None:
        for name in ("codec", "average"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name in ("elapsed_s", "steps", "codebooks_ready", "usage"):
            setattr(self, name, state[name])


def fit_codebooks(books: ResidualCodebooks, points: Tensor, *, rounds: int = 8) -> None:
    """Fill codebooks from `[point, latent]` rows, one after the other."""
    size, rank = books.codes.shape[1:]
    for k in range(len(books.codes)):
        directions = torch.linalg.eigh(points.T @ points)[1][:, -rank:]
        places = points @ directions
        codes = places[torch.randperm(len(places))[:size]].clone()
        for _ in range(rounds):
            index = (codes.square().sum(1) - 2 * (places @ codes.T)).argmin(1)
            count = torch.bincount(index, minlength=size)
            means = torch.zeros_like(codes).index_add_(0, index, places) / count.clamp_min(1)[:, None]
            codes = torch.where(count[:, None] > 0, means, places[torch.randint(len(places), (size,))])
        index = (codes.square().sum(1) - 2 * (places @ codes.T)).argmin(1)
        books.codes[k], books.directions[k] = codes, directions.T
        points = points - codes[index] @ directions.T


def small_test_set(clips: list[tuple[Clip, np.ndarray]], *, count: int, samples: int) -> dict[str, list[np.ndarray]]:
    """A few excerpts per kind and split, spread evenly over the files."""
    groups: dict[str, list[np.ndarray]] = {}
    for clip, data in clips:
        if clip.split == "train" or clip.kind == "hits" or clip.package.startswith("wesnoth") or len(data) < RATE_HZ:
            continue
        length = min(samples, len(data)) // 480 * 480
        start = (len(data) - length) // 2
        groups.setdefault(f"{clip.split}/{clip.kind}", []).append(
            data[start : start + length].astype(np.float32) / 32768
        )
    return {name: [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)] for name, rows in groups.items()}


@torch.no_grad()
def measure(codec: TinyCodec, groups: dict[str, list[np.ndarray]]) -> dict[str, list[float]]:
    """Per group: SI-SDR and log-mel error of the continuous latents, then of the codebooks."""
    results = {}
    for name, excerpts in groups.items():
        rows = []
        for excerpt in excerpts:
            latents = codec.encode(torch.from_numpy(excerpt)[None, None])
            row = []
            for z in (latents, codec.dequantize(codec.quantize(latents))):
                got = codec.decode(z)[0, 0].numpy()
                row += [si_sdr_db(excerpt, got), log_mel_distance_db(excerpt, got, rate_hz=RATE_HZ)]
            rows.append(row)
        results[name] = [round(float(v), 2) for v in np.mean(rows, axis=0)]
    return results


def save(trainer: Trainer, path: Path) -> None:
    torch.save(trainer.state(), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def work_on(rank: int, args: argparse.Namespace) -> None:
    """One worker's share of the run; the first one also measures, logs and saves."""
    torch.set_num_threads(1)
    folder = args.work / args.run
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    dist.init_process_group("gloo", init_method=f"file://{folder.resolve()}/meet", rank=rank, world_size=args.workers)
    clips = load_clips(args.work)
    tests = small_test_set(clips, count=8, samples=4 * RATE_HZ)
    trainer = Trainer(budget_s=args.minutes * 60, seed=args.seed)
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True))
    crops = Crops(clips, seed=args.seed + trainer.steps * args.workers + rank)
    last_save = last_test = last_clock = time.monotonic()
    seen: list[dict[str, float]] = []
    while trainer.progress < 1:
        if trainer.progress > CODEBOOKS_FROM and not trainer.codebooks_ready:
            trainer.fit_codebooks(crops)
        seen.append(trainer.step(crops.batch(BATCH)))
        now = time.monotonic()
        trainer.elapsed_s += min(now - last_clock, 60)
        last_clock = now
        if rank > 0:
            continue
        line = {"steps": trainer.steps, "minutes": round(trainer.elapsed_s / 60, 2)}
        if len(seen) >= 100:
            means = {key: round(float(np.mean([s[key] for s in seen if key in s])), 3) for key in seen[-1]}
            write_line(log, line | {"lr": trainer.learning_rate()} | means)
            seen.clear()
        if now - last_test > 420:
            write_line(log, line | {"test": measure(trainer.average, tests), "live": measure(trainer.codec, tests)})
            last_test = time.monotonic()
        if now - last_save > 150:
            save(trainer, checkpoint)
            last_save = time.monotonic()
    if rank == 0:
        line = {"steps": trainer.steps, "minutes": round(trainer.elapsed_s / 60, 2)}
        write_line(log, line | {"test": measure(trainer.average, tests), "live": measure(trainer.codec, tests)})
        save(trainer, checkpoint)
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with the arrays of data.py")
    parser.add_argument("--minutes", type=float, default=100.0, help="length of the whole run")
    parser.add_argument("--run", default="run", help="name of the run's folder under --work")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, with equal weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.work / args.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended too
    mp.spawn(work_on, args=(args,), nprocs=args.workers, daemon=True)


def write_line(log: Path, line: dict) -> None:
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
