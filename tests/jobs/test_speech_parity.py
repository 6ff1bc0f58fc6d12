"""A whole run of `woodshed speech` against the original's chain at a batch size of 1, written plainly beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.encoders.speech.test_conditioning import plain_condition, plain_emotion
from tests.jobs.plain_indextts import (
    MANIFEST_KEYS,
    PlainFeatures,
    PlainIndexTTS,
    plain_is_validation,
    plain_row,
    plain_wave,
)
from tests.jobs.speech_fixtures import (
    ARRAYS,
    arrays,
    assert_same_features,
    features,
    lines,
    rows,
    run,
    settings_of,
    shared_models,
    stats,
    tree,
)
from tests.jobs.tiny_indextts import LAYER, write_clips, write_manifest
from woodshed.encoders.speech.frontend import num_fbank_frames
from woodshed.errors import UsageError
from woodshed.jobs.speech import speech

FLOATS = 1e-4
VAL_RATIO = 0.3
LANGUAGE = "am"
LONG = "x_long"

SOUNDS = {
    "wavs/mono_16k.wav": (1.0, 16_000, 1),
    "wavs/stereo_44k.wav": (1.313, 44_100, 2),
    "wavs/mono_22k.flac": (0.777, 22_050, 1),
    "wavs/phone_8k.wav": (2.345, 8_000, 1),
    "wavs/studio_48k.flac": (3.011, 48_000, 2),
    "wavs/native_24k.wav": (0.5, 24_000, 1),
    "wavs/lossy_44k.ogg": (1.9, 44_100, 1),
    "wavs/surround_16k.wav": (0.9, 16_000, 3),
    "wavs/shortest.wav": (0.1, 16_000, 1),
    "wavs/odd.wav": (1.21, 16_000, 1),
    "wavs/long.wav": (17.0, 16_000, 1),
}
"""Seconds, rate and channels of each sound."""

GOOD: tuple[dict[str, Any], ...] = (
    {"id": "a_plain", "text": "hello@example.com", "audio": "wavs/mono_16k.wav", "speaker": "one", "language": "en"},
    {"id": "b-stereo.1", "text": "ሰላም፡ዓለም፤ እንዴት፥ ነህ፧ ደህና፨", "audio": "./wavs/stereo_44k.wav", "duration": 99.5},
    {"id": "c", "text": "用beta1测试", "audio": "wavs/mono_22k.flac", "speaker": "二", "language": "zh"},
    {"id": "D_upper", "text": "Größe über 5 km; naïve café", "audio": "wavs/phone_8k.wav", "language": "de"},
    {"id": "e", "text": "8:00 AM 开会", "audio": "wavs/studio_48k.flac", "duration": 3},
    {"id": 17, "text": "12345", "audio": "wavs/native_24k.wav"},
    {"id": "g", "text": "한국어 텍스트: 1,000원", "audio": "wavs/lossy_44k.ogg", "speaker": "one"},
    {"id": "h", "text": "emoji 😀 test", "audio": "../data/wavs/surround_16k.wav"},
    {"id": "i", "text": "This sales for 2.5% off, only $12.5.", "audio": "wavs/shortest.wav"},
    {"id": "j", "text": "こんにちは、世界！", "audio": "wavs/odd.wav", "language": "ja"},
    {"id": LONG, "text": 'አማርኛ: "ጥሩ" (ቀን) [ነው]…', "audio": "wavs/long.wav", "duration": 17.0},
)
BAD: tuple[tuple[str, str | dict[str, Any]], ...] = (
    ("bad_row", '{"id": "torn", "text": "hel'),
    ("bad_row", '["id", "text"]'),
    ("missing", {"id": "lost", "text": "hello", "audio": "wavs/nowhere.wav"}),
    ("no_text", {"id": "mute", "text": "  ", "audio": "wavs/mono_16k.wav"}),
    ("no_id", {"text": "hello", "audio": "wavs/mono_16k.wav"}),
    ("duplicate", {"id": "c", "text": "12345", "audio": "wavs/odd.wav"}),
    ("bad_row", '{"id": "x", "text": "hello", "audio": NaNN}'),
)
"""Kind in `failures.jsonl`, and line."""


def interleaved() -> list[Mapping[str, Any] | str]:
    """The manifest: a bad line behind each of the first good ones."""
    made: list[Mapping[str, Any] | str] = []
    for place, good in enumerate(GOOD):
        made.append(good)
        made += [line for _, line in BAD[place : place + 1]]
    return made


def write_dirty(folder: Path) -> Path:
    for seed, (name, (seconds, rate_hz, channels)) in enumerate(SOUNDS.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        time_s = np.arange(round(seconds * rate_hz)) / rate_hz
        tones = [np.sin(2 * np.pi * hz * time_s) for hz in rng.uniform(90, 0.3 * rate_hz, (6, 1))]
        wave = sum(tones) * (0.4 + 0.3 * np.sin(2 * np.pi * 4 * time_s)) / 8
        sound = np.stack([gain * wave for gain in np.linspace(1, 0.5, channels)], axis=1)
        sound += 0.02 * rng.standard_normal(sound.shape)
        soundfile.write(path, sound.clip(-1, 1), rate_hz)
    return write_manifest(folder / "manifest.jsonl", interleaved())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dirty(tmp_path_factory.mktemp("parity") / "data")


@pytest.fixture(scope="module")
def plain(models: Path, manifest: Path) -> dict[str, PlainFeatures]:
    """What the original would store, by id."""
    chain = PlainIndexTTS(models, LAYER)
    return {str(row["id"]): chain.features(manifest.parent / row["audio"], row["text"], LANGUAGE) for row in GOOD}


def compat_run(models: Path, manifest: Path, output: Path, **more: Any) -> None:
    options = {"compat": True, "language": LANGUAGE, "val_ratio": VAL_RATIO} | more
    summary = run(models, manifest, output, **options)
    assert (summary.num_done, summary.num_failed, summary.num_skipped) == (len(GOOD), len(BAD) - 1, 1)
    assert summary.exit_code == 3


@pytest.fixture(scope="module")
def made(models: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("parity") / "out"
    compat_run(models, manifest, output, batch_size=16)
    return output


def wanted(plain: Mapping[str, PlainFeatures]) -> dict[str, dict[str, np.ndarray]]:
    return {row_id: asdict(own) for row_id, own in plain.items()}


def test_the_data_set_holds_what_it_is_to_hold() -> None:
    kinds = [line if isinstance(line, str) else json.dumps(line) for line in interleaved()]
    assert len(kinds) == len(GOOD) + len(BAD)
    assert [kinds.index(line if isinstance(line, str) else json.dumps(line)) for _, line in BAD]
    assert {rate_hz for _, rate_hz, _ in SOUNDS.values()} == {8_000, 16_000, 22_050, 24_000, 44_100, 48_000}
    counts = [num_fbank_frames(round(seconds * 16_000)) for seconds, _, _ in SOUNDS.values()]
    assert {count % 2 for count in counts} == {0, 1}


def test_a_batch_of_16_gives_what_the_original_gives_alone(made: Path, plain: dict[str, PlainFeatures]) -> None:
    assert_same_features(features(made), wanted(plain), tolerance=FLOATS)
    for own in plain.values():
        assert len(set(own.codes.tolist())) > 1, "codes that could tell a difference"


@pytest.mark.parametrize("batch_size", [0, 1, 3])
def test_other_batch_sizes_give_the_same(
    models: Path, manifest: Path, plain: dict[str, PlainFeatures], tmp_path: Path, batch_size: int
) -> None:
    compat_run(models, manifest, tmp_path / "out", batch_size=batch_size)
    assert_same_features(features(tmp_path / "out"), wanted(plain), tolerance=FLOATS)


def test_the_manifest_rows_are_the_originals(made: Path, plain: dict[str, PlainFeatures]) -> None:
    for name, is_val in (("train_manifest.jsonl", False), ("val_manifest.jsonl", True)):
        ours = lines(made / name)
        theirs = [
            plain_row(row, plain[str(row["id"])])
            for row in GOOD
            if plain_is_validation(str(row["id"]), VAL_RATIO) is is_val
        ]
        assert theirs
        assert ours == theirs
        assert all(tuple(row) == MANIFEST_KEYS for row in ours)
        assert "ሰላም" in (made / name).read_text() or is_val, "text stays text, not escapes"


def test_the_five_keys_of_the_originals_stats(made: Path, models: Path) -> None:
    num_val = sum(plain_is_validation(str(row["id"]), VAL_RATIO) for row in GOOD)
    theirs = {
        "total": len(GOOD),
        "train": len(GOOD) - num_val,
        "val": num_val,
        "tokenizer": str(models / "bpe.model"),
        "gpt_checkpoint": str(models / "gpt.pth"),
    }
    ours = stats(made)
    assert {key: ours[key] for key in theirs} == theirs
    assert list(ours)[:5] == list(theirs)
    assert ours["rows_in_source"] == len(GOOD) + len(BAD)
    assert (made / ".preprocessing_progress.txt").read_text().split() == [str(row["id"]) for row in GOOD]


def test_each_bad_row_is_told_with_its_kind_and_line(made: Path, manifest: Path) -> None:
    text = manifest.read_text().splitlines()
    told = {failure["line"]: failure for failure in lines(made / "failures.jsonl")}
    assert len(told) == len(BAD)
    for kind, line in BAD:
        number = 1 + text.index(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False))
        assert told[number]["kind"] == kind
        assert f"line {number}" in told[number]["reason"]
        own_id = line.get("id") if isinstance(line, dict) and kind != "duplicate" else None
        assert told[number]["id"] == (own_id or f"manifest.jsonl:{number}")


# Beyond the original: the default mode


@pytest.fixture(scope="module")
def usual(models: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("parity") / "usual"
    run(models, manifest, output, language=LANGUAGE)
    return output


def test_the_reference_is_the_first_15_s_as_in_inference(usual: Path, models: Path, manifest: Path) -> None:
    chain = PlainIndexTTS(models, LAYER)
    samples, rate_hz = soundfile.read(manifest.parent / "wavs/long.wav", dtype="float32")
    assert rate_hz == 16_000
    own = arrays(usual, rows(usual)[LONG])
    heard, _ = chain.hear(samples[: 15 * rate_hz])
    # Inference hands over every frame as valid.
    condition, emotion = (plain(chain.tensors, heard, len(heard)) for plain in (plain_condition, plain_emotion))
    np.testing.assert_allclose(own["condition"], condition, rtol=0, atol=FLOATS)
    np.testing.assert_allclose(own["emo_vec"], emotion, rtol=0, atol=FLOATS)
    whole, _ = chain.hear(samples)
    np.testing.assert_array_equal(own["codes"], chain.codes(whole), "codes stand for the whole clip")
    assert np.abs(own["condition"] - plain_condition(chain.tensors, whole, len(whole)).numpy()).max() > 10 * FLOATS


def test_a_short_clip_is_its_own_reference(usual: Path, models: Path, manifest: Path) -> None:
    chain = PlainIndexTTS(models, LAYER)
    samples, _ = soundfile.read(manifest.parent / "wavs/odd.wav", dtype="float32")
    heard, valid = chain.hear(samples)
    assert valid == len(heard) - 1
    own = arrays(usual, rows(usual)["j"])
    np.testing.assert_array_equal(own["codes"], chain.codes(heard), "with the half-padded last frame")
    np.testing.assert_allclose(own["condition"], plain_condition(chain.tensors, heard, len(heard)), rtol=0, atol=FLOATS)


def test_audio_paths_and_lengths_are_true(usual: Path) -> None:
    found = rows(usual)
    assert [found[str(row["id"])]["audio_path"] for row in GOOD] == [row["audio"] for row in GOOD]
    by_name = {name.partition("/")[2]: seconds for name, (seconds, _, _) in SOUNDS.items()}
    for row in GOOD:
        own = found[str(row["id"])]
        seconds = by_name[Path(row["audio"]).name]
        assert own["duration"] == pytest.approx(row.get("duration", seconds), abs=1e-4)
        frames = -(-num_fbank_frames(round(seconds * 16_000)) // 2)
        assert abs(own["code_len"] - frames) <= 1
        assert own["code_len"] == len(np.load(usual / own["codes_path"]))
    seconds_told = stats(usual)["hours"] * 3600
    assert seconds_told == pytest.approx(sum(seconds for seconds, _, _ in SOUNDS.values()), rel=1e-3)


def test_strict_trim_leaves_out_the_half_padded_frame(
    usual: Path, models: Path, manifest: Path, tmp_path: Path
) -> None:
    run(models, manifest, tmp_path / "out", language=LANGUAGE, strict_trim=True)
    kept, trimmed = rows(usual), rows(tmp_path / "out")
    lost = {row_id: kept[row_id]["code_len"] - trimmed[row_id]["code_len"] for row_id in kept}
    assert set(lost.values()) == {0, 1}
    assert lost["j"] == 1
    assert lost["a_plain"] == 0
    chain = PlainIndexTTS(models, LAYER)
    heard, valid = chain.hear(soundfile.read(manifest.parent / "wavs/odd.wav", dtype="float32")[0])
    assert valid == trimmed["j"]["code_len"]
    np.testing.assert_array_equal(arrays(tmp_path / "out", trimmed["j"])["codes"], chain.codes(heard[:valid]))


def test_the_reference_can_be_shorter(models: Path, manifest: Path, tmp_path: Path) -> None:
    run(models, manifest, tmp_path / "out", language=LANGUAGE, reference_seconds=0.7)
    chain = PlainIndexTTS(models, LAYER)
    samples, _ = soundfile.read(manifest.parent / "wavs/odd.wav", dtype="float32")
    heard, _ = chain.hear(samples[: round(0.7 * 16_000)])
    own = arrays(tmp_path / "out", rows(tmp_path / "out")["j"])
    np.testing.assert_allclose(own["condition"], plain_condition(chain.tensors, heard, len(heard)), rtol=0, atol=FLOATS)
    assert len(own["codes"]) == -(-num_fbank_frames(len(samples)) // 2)


def test_the_first_rate_counts_under_compat_only(models: Path, manifest: Path, tmp_path: Path) -> None:
    compat_run(models, manifest, tmp_path / "direct", audio_sr=22_050)
    chain = PlainIndexTTS(models, LAYER)
    wave = plain_wave(manifest.parent / "wavs/stereo_44k.wav", 22_050)
    heard, valid = chain.hear(wave)
    own = arrays(tmp_path / "direct", rows(tmp_path / "direct")["b-stereo.1"])
    np.testing.assert_array_equal(own["codes"], chain.codes(heard))
    np.testing.assert_allclose(own["condition"], plain_condition(chain.tensors, heard, valid), rtol=0, atol=FLOATS)
    with pytest.raises(UsageError) as caught:
        speech(manifest, tmp_path / "other", **settings_of(models, audio_sr=24_000))
    assert str(caught.value).startswith("--audio-sr 24000: the models hear 16000 Hz and nothing else")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "other").exists()


# IndexTTS 2.5, and both at once


@pytest.fixture(scope="module")
def releases(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs for 2.0, 2.5 and both over one small data set."""
    folder = tmp_path_factory.mktemp("parity") / "releases"
    paths = write_clips(folder / "data", (1.0, 0.61, 1.63, 0.33), seed=5)
    given = [{"id": path.stem, "text": "用beta1测试", "audio": f"wavs/{path.name}"} for path in paths]
    manifest = write_manifest(folder / "data" / "manifest.jsonl", [*given])
    run(models, manifest, folder / "2.0", language="zh")
    run(models / "2.5", manifest, folder / "2.5", language="zh", target="2.5")
    gpts = (models / "gpt.pth", models / "2.5" / "gpt.pth")
    run(models, manifest, folder / "both", language="zh", target="both", gpt_checkpoint=gpts)
    return folder


def test_features_of_25(releases: Path, models: Path) -> None:
    chain = PlainIndexTTS(models, LAYER)
    gpt = torch.load(models / "2.5" / "gpt.pth", weights_only=True)["model"]
    of_20, of_25 = rows(releases / "2.0"), rows(releases / "2.5")
    assert {row["code_len"] % 2 for row in of_20.values()} == {0, 1}
    for row_id, row in of_25.items():
        own = arrays(releases / "2.5", row)
        samples, _ = soundfile.read(releases / "data" / row["audio_path"], dtype="float32")
        heard, _ = chain.hear(samples)
        assert row["code_len"] == -(-of_20[row_id]["code_len"] // 2)
        np.testing.assert_array_equal(own["codes"], chain.codes(heard, file="codec.pth"))
        np.testing.assert_allclose(own["emo_vec"], plain_emotion(gpt, heard, len(heard)), rtol=0, atol=FLOATS)
        assert own["speaker_vec"].shape == (192,)
        assert own["speaker_vec"].dtype == np.float32
        assert "condition" not in own
    vectors = [arrays(releases / "2.5", row)["speaker_vec"] for row in of_25.values()]
    assert len({vector.tobytes() for vector in vectors}) == len(vectors)


def test_both_is_the_union_of_the_single_runs(releases: Path) -> None:
    of_both = tree(releases / "both", but={"stats.json"})
    for target in ("2.0", "2.5"):
        single = tree(releases / target, but={"stats.json"})
        below = {name.removeprefix(f"{target}/"): digest for name, digest in of_both.items() if name.startswith(target)}
        assert below == {name: digest for name, digest in single.items() if name in below}
        assert single.keys() - below.keys() == {"failures.jsonl", ".preprocessing_progress.txt"}
        assert {name.partition("/")[0] for name in below if name.endswith(".npy")} == {
            *(ARRAYS if target == "2.0" else ("text_ids", "codes", "speaker_vec", "emo_vec"))
        }
        both, alone = stats(releases / "both" / target), stats(releases / target)
        for key in alone.keys() - {"made_with", "tokenizer", "gpt_checkpoint"}:  # paths
            assert both[key] == alone[key], key
