"""Text ids of 2.5: the table of tokens, the order of steps, and files that are no vocabulary."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from woodshed.encoders.speech.tokens_25 import LANGUAGES, TiktokenText, language_slot, special_tokens
from woodshed.errors import ModelError, UsageError

MERGES = [b"he", b"ll", b"hell", b"hello", b" hello", "你".encode()[:2], "你".encode(), b"", b" w"]


def vocabulary(tokens: list[bytes]) -> bytes:
    """As the published file: "!" and '"' first, then the other printable bytes, as GPT-2 orders them."""
    return b"".join((base64.b64encode(token) or b"=") + b" %d\n" % rank for rank, token in enumerate(tokens))


def tokens() -> list[bytes]:
    first = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = [*first, *(byte for byte in range(256) if byte not in first)]
    return [bytes([byte]) for byte in order] + MERGES


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "multilingual.tiktoken"
    path.write_bytes(vocabulary(tokens()))
    return path


def spelled(ids: list[int]) -> list[bytes | str]:
    """Ids as tokens, looked up in a list and not through the library."""
    ordinary = tokens()
    names = special_tokens()
    return [ordinary[i] if i < len(ordinary) else names[i - len(ordinary)] for i in ids]


def tokens_of(text: TiktokenText, line: str, language: str | None) -> list[bytes | str]:
    ids, unknown = text.ids(line, language)
    assert unknown == 0
    assert ids.dtype == "int32"
    return spelled(ids.tolist())


def test_the_published_table_of_special_tokens() -> None:
    names = special_tokens()
    assert len(names) == len(set(names)) == 1673
    # With the 58,836 ranks of the published file: the ids that published programs count on.
    assert 58_836 + len(names) == 60_509
    places = {
        "<|endoftext|>": 0,
        "<|startoftranscript|>": 1,
        "<|en|>": 2,
        "<|zh|>": 3,
        "<|ja|>": 9,
        "<|su|>": 100,
        "<|ASR|>": 101,
        "<|/Applause|>": 111,
        "<|HAPPY|>": 112,
        "<|translate|>": 116,
        "<|notimestamps|>": 121,
        "<|SPECIAL_TOKEN_1|>": 122,
        "<|SPECIAL_TOKEN_30|>": 151,
        "<|TTS/B|>": 152,
        "<|TTS/SP01|>": 159,
        "<|TTS/SP13|>": 171,
        "<|0.00|>": 172,
        "<|30.00|>": 1672,
    }
    assert {name: names.index(name) for name in places} == places
    assert "<|yue|>" not in names
    assert "<|common|>" not in names


def test_the_published_rows_of_languages() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 106
    rows = {"en": 0, "zh": 1, "es": 3, "ja": 7, "ar": 13, "am": 75, "su": 98, "yue": 99, "zh/en": 103, "common": 105}
    assert {code: TiktokenText.lang_code(code) for code in rows} == rows
    assert TiktokenText.lang_code("kmr") == TiktokenText.lang_code("") == TiktokenText.lang_code("zhen") == 105


def test_the_first_languages_are_those_of_whisper_in_its_order() -> None:
    whisper = pytest.importorskip("transformers.models.whisper.tokenization_whisper")
    assert LANGUAGES[:100] == tuple(whisper.LANGUAGES)


def test_ids_start_with_the_language_and_have_no_end(path: Path) -> None:
    text = TiktokenText(path)
    assert text.vocab_size == len(tokens()) + 1673
    assert tokens_of(text, "hello", "en") == ["<|en|>", b" hello"]
    assert tokens_of(text, "Hello", "EN-us") == ["<|en|>", b" hello"]
    assert tokens_of(text, "你", "zh") == ["<|zh|>", b" ", "你".encode()]
    assert tokens_of(text, "hello", "yue")[:3] == [b"<", b"|", b"y"]
    assert b"".join(map(bytes, tokens_of(text, "x", None))) == b"<|common|> x"  # type: ignore[arg-type]
    assert text.ids(" \n", "en")[0].shape == text.ids("", None)[0].shape == (0,)


def test_an_exclamation_mark_is_the_start_of_text_and_left_out(path: Path) -> None:
    assert tokens_of(TiktokenText(path), "hello!", "en") == ["<|en|>", b" hello"]
    assert tokens_of(TiktokenText(path, keep_control_ids=True), "hello！", "en") == ["<|en|>", b" hello", b"!"]


@pytest.mark.parametrize(
    ("line", "language", "prepared"),
    [
        ("Hello World", "en", "hello world"),
        ("Hola Niño", "es", "HOLA NIÑO"),
        ("Guten Tag", "de", "Guten Tag"),
        ("混合 Text", "zhen", "混合 text"),
        ("Mixed", None, "Mixed"),
        ("“好”：……（对）；a~b、c", "zh", "'好',…'对',a-b,c"),
        ("say <going|g ow1 . ih0 ng> now", "en", "say <|SPECIAL_TOKEN_1|>G OW1 . IH0 NG<|SPECIAL_TOKEN_1|> now"),
        ("<行|xing2>", "zh", "<|SPECIAL_TOKEN_2|>XING2<|SPECIAL_TOKEN_2|>"),
        ("<東京|とうきょう>へ", "ja", " とうきょう へ"),
        ("<東京|トウキョウ>", "ja", " トウキョウ "),
        ("<東京|とうキョウ>", "ja", "<|SPECIAL_TOKEN_2|>とうキョウ<|SPECIAL_TOKEN_2|>"),
        ("<|happy|> hi <|endoftext|>", "en", "<|HAPPY|> hi <|ENDOFTEXT|>"),
        ("a <| b |> c", "es", "A <| B |> C"),
    ],
)
def test_the_order_of_steps(path: Path, line: str, language: str | None, prepared: str) -> None:
    assert TiktokenText(path).prepared(line, language) == prepared


def test_no_text_can_name_a_language_or_an_end(path: Path) -> None:
    found = tokens_of(TiktokenText(path), "<|zh|> <|endoftext|> <|laughter|> <|sad|>", "en")
    assert [token for token in found if isinstance(token, str)] == ["<|en|>", "<|SAD|>"]


def test_a_normaliser_sees_punctuation_as_the_original_or_as_it_was(path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def normalise(text: str, slot: str) -> str:
        seen.append((text, slot))
        return text.replace("9:30", "Nine Thirty")

    assert TiktokenText(path, normalise=normalise).prepared("At 9:30", "en-GB") == "at 9,30"
    assert TiktokenText(path, normalise=normalise, marks_first=False).prepared("At 9:30", "en") == "at nine thirty"
    assert seen == [("At 9,30", "en"), ("At 9:30", "en")]


def test_words_of_japanese_alone_are_split(path: Path) -> None:
    text = TiktokenText(path, split_japanese=lambda line: " ".join(line))
    assert text.prepared("<東|トウ>京", "jpn") == "  ト ウ   京"
    assert text.prepared("東京", "zh") == "東京"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.text(max_size=40), language=st.sampled_from(["en", "ja", "am", "common", None]))
def test_every_text_comes_back_from_its_ids(path: Path, line: str, language: str | None) -> None:
    text = TiktokenText(path, keep_control_ids=True)
    prepared = text.prepared(line, language)
    found = tokens_of(text, line, language)
    if not prepared.strip():
        assert found == []
        return
    back = b"".join(token.encode() if isinstance(token, str) else token for token in found)
    expected = f"<|{language_slot(language)}|> {prepared}"
    assert back.decode() == expected


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "lacks ranks, or has one twice: 0 tokens, up to none|has no token for 256 of the 256 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "line 1 is b'version https://git-lfs"),
        (b"IQ== 0\nIg== x\n", "line 2 is b'Ig== x'"),
        (b"IQ== 0\nnot base64!\n", "line 2"),
        (b"IQ== 0\nIQ== 1\n", "has the token of line 2 under two ranks"),
        (b"IQ== 0\nIg== 2\n", "lacks ranks, or has one twice: 2 tokens, up to rank 2"),
        (vocabulary(tokens()[:200]), "has no token for 56 of the 256 bytes, such as 0x"),
        (b"\xff\xfe\x00\n", "line 1"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "broken.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        TiktokenText(path)
    assert any(part in str(caught.value) for part in told.split("|"))
    assert "broken.tiktoken" in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no vocabulary at .*absent\.tiktoken"):
        TiktokenText(tmp_path / "absent.tiktoken")


def test_the_digest_is_that_of_the_file(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tiktoken"
    other.write_bytes(path.read_bytes())
    assert TiktokenText(other).digest == TiktokenText(path).digest
    other.write_bytes(vocabulary([*tokens(), b"wo"]))
    assert TiktokenText(other).digest != TiktokenText(path).digest
