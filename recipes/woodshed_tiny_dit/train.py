"""Train woodshed-tiny-dit on the latents that `latents.py` made. Can be stopped at any time and run again to go on.

    python recipes/woodshed_tiny_dit/train.py --work /somewhere/big --minutes 60

One thread. The learning rate follows the clock: a short rise, level, and a fall over the last part of `--minutes`.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from grid import by_tag, looks, losses, timesteps
from latents import Piece, load
from torch import Tensor

from woodshed.backends.tiny_dit_network import TinyDit, TinyDitConfig

BATCH_FRAMES = 4096
LENGTHS = {192: 0.6, 512: 0.4}
"""Frames of a crop, and how often; a batch has one length."""
TAG_SHARES = {
    "rock": 0.16,
    "metal": 0.14,
    "guitar": 0.12,
    "ambient": 0.26,
    "electronic": 0.1,
    "acoustic": 0.1,
    "hold music": 0.07,
    "drums": 0.04,
    None: 0.01,
}
PEAK_RATE = 2e-3
WARM_STEPS = 100
FALL_FROM = 0.6
"""Share of the run after which the learning rate falls."""
AVERAGE_KEEP = 0.999
TEST_EVERY_S, SAVE_EVERY_S = 300, 120


class Crops:
    """Random crops of the training pieces: a tag by its share, then a place by length."""

    def __init__(self, pieces: list[tuple[Piece, np.ndarray]], config: TinyDitConfig, *, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.config = config
        self.tags = list(TAG_SHARES)
        self.shares = np.array(list(TAG_SHARES.values())) / sum(TAG_SHARES.values())
        self.pieces = {tag: [latents for piece, latents in pieces if piece.tag == tag] for tag in self.tags}
        lengths = {tag: np.array([len(latents) for latents in own], np.float64) for tag, own in self.pieces.items()}
        self.bounds = {tag: np.cumsum(own / own.sum()) for tag, own in lengths.items()}

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents `[batch, frame, 64]`, tag rows, and which frames are sound: some are shorter than a crop."""
        chance = self.chance
        length = int(chance.choice(list(LENGTHS), p=list(LENGTHS.values())))
        size = BATCH_FRAMES // length
        latents = np.zeros((size, length, self.config.latent_dim), np.float32)
        mask = np.zeros((size, length), bool)
        rows = np.zeros(size, np.int64)
        for row in range(size):
            tag = self.tags[int(chance.choice(len(self.tags), p=self.shares))]
            own = self.pieces[tag]
            source = own[min(int(np.searchsorted(self.bounds[tag], chance.random())), len(own) - 1)]
            start = int(chance.integers(max(1, len(source) - length + 1)))
            crop = source[start : start + length]
            latents[row, : len(crop)] = crop
            mask[row, : len(crop)] = True
            if chance.random() >= self.config.condition_dropout:
                rows[row] = self.config.tag_index(tag)
        return torch.from_numpy(latents), torch.from_numpy(rows), torch.from_numpy(mask)


class Trainer:
    """Network, optimisers, average and clock; `step` does one batch."""

    def __init__(self, config: TinyDitConfig, *, budget_s: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = TinyDit(config)
        self.compiled = torch.compile(self.network, dynamic=False)
        """The same network, half as fast again; each length of crop costs a minute of compiling."""
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        # Matrices inside the layers go to Muon, everything else (ends, norms, tables, tags) to AdamW.
        named = list(self.network.named_parameters())
        is_matrix = [name.startswith("layers.") and "_proj" in name for name, _ in named]
        matrices = [p for (_, p), chosen in zip(named, is_matrix, strict=True) if chosen]
        others = [p for (_, p), chosen in zip(named, is_matrix, strict=True) if not chosen]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=0.0, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.budget_s = budget_s
        self.elapsed_s = 0.0
        self.steps = 0

    @property
    def progress(self) -> float:
        return min(self.elapsed_s / self.budget_s, 1.0)

    def learning_rate(self) -> float:
        fall = max(0.0, (self.progress - FALL_FROM) / (1 - FALL_FROM))
        return PEAK_RATE * min(1.0, (self.steps + 1) / WARM_STEPS) * (1 - 0.99 * fall**0.5 if fall else 1.0)

    def step(self, clean: Tensor, tag: Tensor, mask: Tensor) -> float:
        """One update; the loss before it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        config, count = self.network.config, len(clean)
        # Timesteps spread evenly over their distribution: less chance in the loss of a batch.
        quantiles = ((torch.randperm(count) + torch.rand(count)) / count).clamp(1e-4, 1 - 1e-4)
        t = torch.sigmoid(config.time_mean + config.time_std * torch.special.ndtri(quantiles))
        noise = torch.randn_like(clean)
        noisy = t[:, None, None] * noise + (1 - t)[:, None, None] * clean
        error = (self.compiled(noisy, t, tag, mask) - (noise - clean)).square().mean(2)
        loss = ((error * mask).sum(1) / mask.sum(1)).mean()
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        keep = min(AVERAGE_KEEP, self.steps / (self.steps + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - keep)
        return float(loss.detach())

    def state(self) -> dict:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "elapsed_s": self.elapsed_s,
            "steps": self.steps,
            "chance": torch.get_rng_state(),
        }

    def restore(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.elapsed_s, self.steps = state["elapsed_s"], state["steps"]
        torch.set_rng_state(state["chance"])


def save(trainer: Trainer, path: Path) -> None:
    """Whole or not at all."""
    torch.save(trainer.state(), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def write_line(log: Path, line: dict) -> None:
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def train(work: Path, *, run: str, minutes: float, seed: int) -> None:
    torch.set_num_threads(1)
    folder = work / run
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    config = TinyDitConfig()
    times = timesteps(8, config)
    sets = {split: looks(work, split=split, per_tag=4) for split in ("held_out", "train")}
    trainer = Trainer(config, budget_s=minutes * 60, seed=seed)
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True))
    crops = Crops(load(work, "train"), config, seed=seed + trainer.steps)

    def test() -> None:
        means = {split: by_tag(own, losses(trainer.average, own, times)) for split, own in sets.items()}
        rounded = {split: {tag: round(value, 4) for tag, value in tags.items()} for split, tags in means.items()}
        write_line(log, {"steps": trainer.steps, "minutes": round(trainer.elapsed_s / 60, 2), "test": rounded})

    seen: list[float] = []
    if trainer.steps == 0:
        test()
    last_test = last_save = last_clock = time.monotonic()
    while trainer.progress < 1:
        seen.append(trainer.step(*crops.batch()))
        now = time.monotonic()
        trainer.elapsed_s += min(now - last_clock, 60)
        last_clock = now
        if len(seen) == 50:
            line = {"steps": trainer.steps, "minutes": round(trainer.elapsed_s / 60, 2)}
            write_line(log, line | {"lr": round(trainer.learning_rate(), 6), "loss": round(float(np.mean(seen)), 4)})
            seen.clear()
        if now - last_test > TEST_EVERY_S:
            test()
            last_test = time.monotonic()
        if now - last_save > SAVE_EVERY_S:
            save(trainer, checkpoint)
            last_save = time.monotonic()
    test()
    save(trainer, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with the latents of latents.py")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the whole run")
    parser.add_argument("--run", default="run", help="name of the run's folder under --work")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.work, run=args.run, minutes=args.minutes, seed=args.seed)


if __name__ == "__main__":
    main()
