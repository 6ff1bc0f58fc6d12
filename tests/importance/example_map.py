"""A map as an analysis of ACE-Step would write it, made of random numbers: for tests of what reads maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from woodshed.importance.fisher_map import FisherMap

NUM_BLOCKS = 4
SHAPES = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (1024, 2048),
    "self_attn.v_proj": (1024, 2048),
    "self_attn.o_proj": (2048, 2048),
    "cross_attn.q_proj": (2048, 2048),
    "cross_attn.k_proj": (1024, 2048),
    "cross_attn.v_proj": (1024, 2048),
    "cross_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (6144, 2048),
    "mlp.up_proj": (6144, 2048),
    "mlp.down_proj": (2048, 6144),
}
"""Outputs x inputs in the 2B model, whose 24 blocks have these eleven each."""
FOCUSES = ("balanced", "texture", "structure", "uniform")


def layer_names(num_blocks: int = NUM_BLOCKS) -> list[str]:
    return [f"layers.{block}.{projection}" for block in range(num_blocks) for projection in SHAPES]


def example_map(
    *,
    num_blocks: int = NUM_BLOCKS,
    num_songs: int = 12,
    seed: int = 0,
    noise_seed: int | None = None,
    relative_se: float = 0.06,
    planted: dict[str, float] | None = None,
    **top: Any,
) -> FisherMap:
    """A whole map whose parts agree with each other.

    Args:
        seed: of the true scores; maps of one seed differ by noise alone.
        noise_seed: of the noise; None: no noise.
        relative_se: standard error of each log score, and the size of the noise.
        planted: layer -> factor of its true score.
        top: fields of the top level, such as `model_variant`.
    """
    names = layer_names(num_blocks)
    logs = np.random.default_rng(seed).normal(0.0, 0.8, len(names))
    logs += np.array([np.log((planted or {}).get(name, 1.0)) for name in names])
    if noise_seed is not None:
        logs += np.random.default_rng(noise_seed).normal(0.0, relative_se, len(names))
    scores = 1e-7 * np.exp(logs)
    ranks = np.clip(8 * np.round(8 * np.exp(0.5 * (logs - np.median(logs)))), 16, 128).astype(int)
    order = np.argsort(-scores)
    groups = np.empty(len(names), dtype=int)
    groups[order] = np.arange(len(names)) // 6
    rng = np.random.default_rng([seed, 7])
    layers = [
        _layer(name, float(score), int(rank), int(group), relative_se, rng)
        for name, score, rank, group in zip(names, scores, ranks, groups, strict=True)
    ]
    edges = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    energy = {
        name: [None if at == 0 else float(score * np.exp(rng.normal(0, 0.4) - at / 3)) for at in range(5)]
        for name, score in zip(names, scores, strict=True)
    }
    params = sum(layer["rank"] * (layer["d_out"] + layer["d_in"]) for layer in layers)
    shares = np.sort(rng.dirichlet(np.full(num_songs, 2.0)))[::-1]
    whole: dict[str, Any] = {
        "version": 2,
        "model_variant": "base",
        "timestep_focus": "balanced",
        "timestep_range": [0.0, 1.0],
        "timestep_params": {"mu": -0.4, "sigma": 1.0},
        "num_runs": 3,
        "batches_per_run": num_songs,
        "total_batches": 3 * num_songs,
        "base_rank": 64,
        "rank_budget": {"min": 16, "max": 128},
        "dataset_hash": "16db7e471239",
        "target_modules": sorted({name.split(".", 2)[2] for name in names}),
        "rank_pattern": {layer["name"]: layer["rank"] for layer in layers},
        "alpha_pattern": {layer["name"]: 2 * layer["rank"] for layer in layers},
        "modules": [
            {
                "name": f"decoder.{names[at]}",
                "fisher_score": float(scores[at]),
                "fisher_cross_run_std": float(scores[at] * relative_se),
                "effective_rank": -1,
                "assigned_rank": int(ranks[at]),
            }
            for at in order
        ],
        "num_hidden_layers": num_blocks,
        "woodshed": {
            "versions": {"woodshed": "0.1.0"},
            "backend": "acestep",
            "seed": 0,
            "precision": "fp32",
            "device": "cpu",
            "weights_digest": "a1b2c3d4e5f60718",
            "hidden_sizes": {"self_attn": [2048, 1024], "cross_attn": [2048, 1024], "mlp": [6144, 2048]},
            "data_digest": f"data-{seed}-{noise_seed}",
            "num_items": num_songs,
            "items_used": [f"song-{number:02}" for number in range(num_songs)],
            "loss": "mean squared error of the velocity",
            "draws": {"crop_s": 60.0, "antithetic": False},
            "effective_draws": dict(zip(FOCUSES, (600.0, 210.0, 240.0, 480.0), strict=True)),
            "convergence": {
                "reason": "stable",
                "num_passes": 188,
                "num_draws": 600,
                "num_checks": 12,
                "patience": 5,
                "moved": [0.4, 0.2, 0.1, 0.06, 0.04, 0.03, 0.02, 0.01, 0.01, 0.01, 0.005, 0.005],
                "relative_se": [0.4, 0.3, 0.2, 0.18, 0.15, 0.12, 0.11, 0.1, 0.09, 0.08, 0.07, relative_se],
                "max_relative_se": 0.1,
            },
            "allocation": {
                "rule": "waterfill",
                "score": "wg",
                "base_rank": 64,
                "budget_params": None,
                "rank_min": 16,
                "rank_max": 128,
                "rank_multiple": 8,
                "alpha_ratio": 2.0,
                "coverage": 1.0,
                "floors": {},
                "seed": 0,
                "num_params": params,
                "median_rank": float(np.median(ranks)),
                "shrinkage": 0.12,
            },
            "layers": layers,
            "leverage": [
                {"id": f"song-{number:02}", "share": float(share)} for number, share in enumerate(shares.tolist())
            ],
            "halves_correlation": 0.97,
            "trace": {"edges": edges, "energy": energy},
            "reference": {
                "kind": "silence",
                "num_items": 1,
                "rank_correlation": 0.81,
                "ceiling": 0.97,
                "p_value": 0.01,
                "is_specific": True,
            },
        },
    }
    return FisherMap.model_validate(whole | top)


def _layer(
    name: str, score: float, rank: int, group: int, relative_se: float, rng: np.random.Generator
) -> dict[str, Any]:
    projection = name.split(".", 2)[2]
    d_out, d_in = SHAPES[projection]
    num_weights = d_out * d_in
    density = score * float(np.exp(rng.normal(0, 0.3)))
    profiles = {
        focus: {
            "energy": _estimate(density * num_weights * factor, relative_se),
            "signal": _estimate(density * num_weights * factor * 0.3, 2 * relative_se),
            "noise": density * num_weights * factor * 0.7,
            "wg": _estimate(score * factor, relative_se),
            "density": _estimate(density * factor, relative_se),
            "sensitivity": _estimate(1e-6 * float(np.exp(rng.normal(0, 0.5))), relative_se),
            "contrast": float(np.clip(rng.normal(0.1, 0.1), 0.0, None)) if focus == "balanced" else None,
        }
        for focus, factor in zip(FOCUSES, (1.0, 0.7, 1.4, 0.9), strict=True)
    }
    spectrum = [float(value) for value in np.sqrt(density * num_weights) * 0.5 ** np.arange(1, 9)]
    return {
        "name": name,
        "category": projection.split(".")[0],
        "d_out": d_out,
        "d_in": d_in,
        "num_weights": num_weights,
        "adaptable": True,
        "profiles": profiles,
        "spectrum": spectrum,
        "spectrum_rest": density * num_weights * 0.01,
        "rank": rank,
        "alpha": 2.0 * rank,
        "rank_probability": {str(rank): 0.8, str(rank + 8): 0.2},
        "inclusion_probability": 1.0,
        "group": group,
    }


def _estimate(value: float, relative_se: float) -> dict[str, float]:
    reach = float(np.exp(1.645 * relative_se))
    return {"value": value, "low": value / reach, "high": value * reach, "relative_se": relative_se}
