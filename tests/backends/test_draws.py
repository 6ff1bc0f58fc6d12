"""Training draws: the model's own timesteps and dropout, from a seed and a key and from nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.encoders.acestep.tiny_acestep import build_acestep, save_diffusers
from woodshed.backends.acestep import AceStep, load_acestep
from woodshed.backends.draws import training_draw
from woodshed.backends.open import open_backend


def acestep(folder: Path) -> AceStep:
    return load_acestep(save_diffusers(build_acestep(), folder))


def test_draws_follow_the_models_own_distribution(tmp_path: Path) -> None:
    model = acestep(tmp_path)
    draws = [training_draw(model, "song.wav", number, seed=1) for number in range(4000)]
    steps = np.array([draw.timestep for draw in draws])
    expected = [model.timestep(quantile) for quantile in (0.1, 0.5, 0.9)]
    assert np.abs(np.quantile(steps, (0.1, 0.5, 0.9)) - expected).max() < 0.02
    assert abs(np.mean([draw.drop_condition for draw in draws]) - 0.15) < 0.02
    assert len({draw.seed for draw in draws}) == len(draws)


def test_a_draw_depends_on_its_key_and_seed_alone(tmp_path: Path) -> None:
    model = acestep(tmp_path)
    assert training_draw(model, "a", 3, seed=1) == training_draw(model, "a", 3, seed=1)
    others = {training_draw(model, *key, seed=seed).seed for key, seed in ((("a", 3), 2), (("a", 4), 1), (("b", 3), 1))}
    assert training_draw(model, "a", 3, seed=1).seed not in others
    assert len(others) == 3


def test_a_model_without_noise_draws_no_timestep() -> None:
    draw = training_draw(open_backend("whisper"), "clip", 0, seed=1)
    assert (draw.timestep, draw.drop_condition) == (None, False)
