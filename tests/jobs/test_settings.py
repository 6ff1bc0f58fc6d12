from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from woodshed.errors import UsageError
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.complaints import checked, closest
from woodshed.jobs.remember_settings import RememberSettings
from woodshed.jobs.settings import (
    DEFAULT_MODEL,
    MAX_WINDOW_S,
    MIN_WINDOW_S,
    DecodeSettings,
    DemoSettings,
    EncodeSettings,
    InspectSettings,
    Settings,
    VerifySettings,
    check_window,
)
from woodshed.jobs.songs_settings import SongsSettings

ALL: tuple[type[Settings], ...] = (
    EncodeSettings,
    DecodeSettings,
    InspectSettings,
    VerifySettings,
    DemoSettings,
    SongsSettings,
    AnalyzeSettings,
    RememberSettings,
)


def encode_settings(**values: Any) -> EncodeSettings:
    return checked(EncodeSettings, {"input": "sounds", "output_path": "out"} | values)


def refusal(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        encode_settings(**values)
    return str(caught.value)


def test_spec_defaults_are_kept() -> None:
    made = encode_settings()
    assert (made.num_workers, made.shuffle, made.model_half, made.is_discrete) == (4, False, False, False)
    assert (made.num_nodes, made.strategy, made.limit_batches) == (1, "auto", None)
    assert encode_settings(compat=True).batch_size == 1


@pytest.mark.parametrize("model", ALL)
def test_every_field_is_described_and_stands_in_one_section(model: type[Settings]) -> None:
    placed = [name for names in model.sections.values() for name in names]
    assert sorted(placed) == sorted(model.model_fields)
    assert all((info.description or "").endswith(".") for info in model.model_fields.values())


@pytest.mark.parametrize("model", ALL)
def test_flags_are_unique(model: type[Settings]) -> None:
    flags = [model.flag(name) for name in model.model_fields]
    assert len(set(flags)) == len(flags)


def test_without_a_model_it_is_the_embedded_one() -> None:
    assert encode_settings().pretrained_name == DEFAULT_MODEL
    given = encode_settings(model_config_path="m.json", ckpt_path="m.ckpt")
    assert given.pretrained_name is None
    assert given.ckpt_path == Path("m.ckpt")


@pytest.mark.parametrize(("given", "lacking"), [("model_config_path", "--ckpt-path"), ("ckpt_path", "--model-config")])
def test_model_config_and_checkpoint_belong_together(given: str, lacking: str) -> None:
    said = refusal(**{given: "x"})
    assert f"is given without {lacking}: a model config and its checkpoint belong together" in said
    assert f"(try: add {lacking} FILE" in said


def test_two_models_are_refused() -> None:
    said = refusal(model_config_path="a", ckpt_path="b", pretrained_name="mimi")
    assert "--pretrained-name mimi and --ckpt-path b name two models" in said


def test_exactly_one_source() -> None:
    assert "--input and --dataset-config are both given" in refusal(dataset_config_path="d.json")
    said = refusal(input=None)
    assert "nothing to encode is given (try: add --input FOLDER_OR_MANIFEST, or --dataset-config FILE)" in said


def test_half_precision_has_two_names() -> None:
    assert encode_settings(model_half=True).precision == "fp16"
    assert encode_settings(model_half=True, precision="fp16").precision == "fp16"
    assert "--model-half means fp16, but --precision is bf16" in refusal(model_half=True, precision="bf16")


def test_tokens_have_no_moments() -> None:
    assert "--is-discrete stores tokens, but --latents mean" in refusal(is_discrete=True, latents="mean")


def test_compat_implies_what_the_original_does() -> None:
    made = encode_settings(compat=True)
    assert (made.window, made.resampler, made.latents) == ("first", "torchaudio_sinc", "sample")
    assert encode_settings(compat=True, resampler="soxr", batch_size=8).resampler == "soxr"


@pytest.mark.parametrize(("name", "value"), [("window", "tile"), ("latents", "mean"), ("layout", "shards")])
def test_compat_refuses_what_contradicts_it(name: str, value: str) -> None:
    assert f"--compat works with --{name} " in refusal(compat=True, **{name: value})


def test_what_the_cluster_release_brings() -> None:
    assert "--num-nodes 4: encoding on several machines is not in this release" in refusal(num_nodes=4)
    assert "--strategy ddp: only auto is in this release" in refusal(strategy="ddp")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "mps"])
def test_devices(device: str) -> None:
    assert encode_settings(device=device).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cpu:0", ""])
def test_unknown_devices(device: str) -> None:
    assert f"--device {device} is not a device" in refusal(device=device)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch_size": 0}, "--batch-size is 0, but must be at least 1"),
        ({"num_workers": -1}, "--num-workers is -1, but must be at least 0"),
        ({"ranks": 1001}, "--ranks is 1001, but must be at most 1000"),
        ({"limit_batches": 0}, "--limit-batches is 0, but must be at least 1"),
        ({"window": "tiles"}, "--window is 'tiles', but must be one of 'first', 'tile' or 'whole'"),
        ({"seed": "1"}, "--seed is '1', but must be a whole number"),
        ({"seed": 1.5}, "--seed is 1.5, but must be a whole number"),
        ({"shuffle": 1}, "--shuffle is 1, but must be true or false"),
        ({"max_file_s": 0.0}, "--max-file-s is 0.0, but must be more than 0"),
        ({"max_file_s": float("inf")}, "--max-file-s is inf, but must be a finite number"),
        ({"pretrained_name": ""}, "--pretrained-name is '', but must not be empty"),
        ({"ckpt_path": 3}, "--ckpt-path is 3, but must be a path"),
        ({"output_path": ""}, "a path is empty"),
        ({"bach_size": 2}, "unknown setting 'bach_size' (try: did you mean batch_size?)"),
    ],
)
def test_refusals_name_the_flag_the_value_and_the_rule(values: dict[str, object], said: str) -> None:
    assert said in refusal(**values)


def test_what_is_missing_is_named_with_its_flag() -> None:
    with pytest.raises(UsageError, match=r"--output-path is missing \(try: add --output-path PATH\)"):
        checked(EncodeSettings, {"input": "x"})
    with pytest.raises(UsageError, match=r"try: add FOLDER"):
        checked(DecodeSettings, {})


def test_all_faults_are_told_at_once() -> None:
    said = refusal(batch_size=0, seed=-1)
    assert "--batch-size is 0" in said
    assert "--seed is -1" in said


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        encode_settings().seed = 3


def test_home_is_expanded_but_no_other_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert encode_settings(input="~/sounds").input == tmp_path / "sounds"
    assert encode_settings(input="~odd").input == Path("~odd")


def test_to_json_builds_the_same_settings_again() -> None:
    for made in (encode_settings(), encode_settings(compat=True, model_half=True, input="bad\udcffname")):
        assert EncodeSettings(**made.to_json()) == made
    decoding = DecodeSettings(folder=Path("x"), ids=("a", "b"))
    assert decoding.to_json()["ids"] == ["a", "b"]
    assert DecodeSettings(**decoding.to_json()) == decoding


@pytest.mark.parametrize(
    ("rate_hz", "ratio", "samples"),
    [
        (44_100, 2048, 1_320_960),
        (44_100, 512, 1_320_960),
        (44_100, 4096, 1_318_912),
        (24_000, 480, 720_000),
        (48_000, 1920, 1_440_000),
    ],
)
def test_default_window_is_the_specs_or_about_thirty_seconds(rate_hz: int, ratio: int, samples: int) -> None:
    assert encode_settings().window_samples(rate_hz=rate_hz, ratio=ratio) == samples


def test_compat_keeps_the_specs_window_at_any_rate() -> None:
    assert encode_settings(compat=True).window_samples(rate_hz=48_000, ratio=1920) == 1_320_960


@settings(max_examples=60, deadline=None)
@given(rate_hz=st.integers(8_000, 192_000), ratio=st.integers(1, 8192), compat=st.booleans())
def test_default_window_always_works(rate_hz: int, ratio: int, compat: bool) -> None:
    samples = encode_settings(compat=compat).window_samples(rate_hz=rate_hz, ratio=ratio)
    check_window(samples, rate_hz=rate_hz, ratio=ratio)


def test_window_of_stable_audio_3_fits() -> None:
    made = encode_settings(sample_size=380 * 44_100 // 4096 * 4096)
    assert made.window_samples(rate_hz=44_100, ratio=4096) == made.sample_size


def window_refusal(samples: int, rate_hz: int, ratio: int) -> str:
    with pytest.raises(UsageError) as caught:
        encode_settings(sample_size=samples).window_samples(rate_hz=rate_hz, ratio=ratio)
    return str(caught.value)


def test_window_refusals_name_lengths_that_work() -> None:
    assert window_refusal(65_000, 44_100, 512) == (
        "--sample-size 65000 is not a multiple of the model's ratio 512 (126.95 frames) "
        "(try: the nearest that work: 64512 or 65024)"
    )
    assert "is 0.0116 s at the model's 44100 Hz, less than 0.02 s (try: the shortest that works is 1024)" in (
        window_refusal(512, 44_100, 512)
    )
    assert "more than 1200 s (try: the longest that works is 52918272" in window_refusal(10**8, 44_100, 2048)


def window_error(samples: int, *, rate_hz: int, ratio: int) -> UsageError | None:
    try:
        check_window(samples, rate_hz=rate_hz, ratio=ratio)
    except UsageError as error:
        return error
    return None


@settings(max_examples=100, deadline=None)
@given(samples=st.integers(1, 10**8), rate_hz=st.integers(8_000, 96_000), ratio=st.integers(1, 8192))
def test_lengths_in_the_hint_do_work(samples: int, rate_hz: int, ratio: int) -> None:
    error = window_error(samples, rate_hz=rate_hz, ratio=ratio)
    if error is None:
        assert MIN_WINDOW_S <= samples / rate_hz <= MAX_WINDOW_S
        assert samples % ratio == 0
        return
    named = [int(word) for word in re.findall(r"\b\d+\b", (error.hint or "").partition(";")[0])]
    assert named
    assert [window_error(length, rate_hz=rate_hz, ratio=ratio) for length in named] == [None] * len(named)


def validate(made: EncodeSettings, **model: Any) -> None:
    facts: dict[str, Any] = {"rate_hz": 44_100, "ratio": 2048, "audio_channels": 2}
    facts |= {"is_discrete_capable": True, "has_moments": True}
    made.validate_for_model(**(facts | model))


def test_what_the_model_cannot_give() -> None:
    validate(encode_settings(is_discrete=True))
    with pytest.raises(UsageError, match="--is-discrete: this model has no codebooks"):
        validate(encode_settings(is_discrete=True), is_discrete_capable=False)
    with pytest.raises(UsageError, match="--latents moments: this model is not variational"):
        validate(encode_settings(latents="moments"), has_moments=False)
    validate(encode_settings(latents="mean"), has_moments=False)
    with pytest.raises(UsageError, match="--channels 6: this model takes exactly 2"):
        validate(encode_settings(channels=6))
    validate(encode_settings(channels=6), takes_any_channels=True)
    with pytest.raises(UsageError, match="not a multiple"):
        validate(encode_settings(sample_size=100_000))
    validate(encode_settings(sample_size=100_000, window="whole"))


@pytest.mark.parametrize(
    ("folder", "expected"), [("out", "out-decoded"), ("a/b/", "a/b-decoded"), ("/x/y", "/x/y-decoded")]
)
def test_decoded_sounds_lie_beside_their_folder(folder: str, expected: str) -> None:
    assert checked(DecodeSettings, {"folder": folder}).output_folder == Path(expected)


def test_decoding_the_current_folder_stays_out_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert checked(DecodeSettings, {"folder": "."}).output_folder == tmp_path.resolve() / "here-decoded"


def test_closest_prefers_a_word_that_is_begun() -> None:
    assert closest("--out", ["layout", "output_path"]) == "output_path"
