"""Our rules: what a careful reader expects of each language."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoders.speech.text.goldens import TEXTS
from woodshed.encoders.speech.text.clean import clean_text
from woodshed.encoders.speech.text.engine import Engine, open_engine
from woodshed.encoders.speech.text.languages import base_language, reading_of
from woodshed.encoders.speech.text.normalise import normalise

ENGINE = open_engine("wetext")
LINES = st.text(
    st.one_of(
        st.sampled_from(
            "  ..,,，。：;:!?\"'“”…—~·$%-&()（）\\፡።፤፥፦፨1２3٣abÀßIıǅſ一好𠀀あカｶﾞー한ሰПéé́\u200b\ufeff\u00a0\u3000\n\t"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)


def read(text: str, language: str | None) -> str:
    return normalise(text, language, ENGINE)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        # each keeps its own numbers (the original reads French and German in English, and Russian in Chinese)
        ("Скидка 25% до 3 мая", "ru", "Скидка 25% до 3 мая"),
        ("Скидка 25% до 3 мая", None, "Скидка 25% до 3 мая"),
        ("Скидка 25% до 3 мая", "zh", "Скидка 25% до 3 мая"),
        ("Скидка 25% до 3 мая", "en", "Скидка 25% до 3 мая"),
        ("한국어 1,000원", None, "한국어 1,000원"),
        ("हिन्दी में 25%", None, "हिन्दी में 25%"),
        ("Il est né en 1998, à 8h30", "fr", "Il est né en 1998, à 8h30"),
        ("Größe: über 5 km", "de-AT", "Größe, über 5 km"),
        ("Größe: über 5 km", None, "Größe, über 5 km"),
        ("12345", None, "12345"),
        ("¿Cuántos? 5 «km»", "es", "¿Cuántos? 5 «km»"),
        # the record's language decides, however it is written
        ("This sales for 2.5% off", "en", "This sales for two point five percent off"),
        ("This sales for 2.5% off", "EN-us", "This sales for two point five percent off"),
        ("This sales for 2.5% off", "de", "This sales for 2.5% off"),
        ("共465篇", "zh-Hant", "共四百六十五篇"),
        ("共465篇", "cmn", "共四百六十五篇"),
        ("共465篇", "", "共四百六十五篇"),
        ("共465篇", "ja", "共465篇"),
        ("共465篇です", None, "共465篇です"),
        ("大学 3 곳", None, "大学 3 곳"),
        ("12345", "en", "twelve thousand three hundred and forty five"),
    ],
)
def test_numbers_are_read_in_their_own_language_or_not_at_all(text: str, language: str | None, expected: str) -> None:
    assert read(text, language) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He said "hello" to me at 5:30.', "He said 'hello' to me at five thirty."),
        ("“It’s 5 km”", "'It is five kilometers'"),
        ("the rabbit's 3 ears", "the rabbit's three ears"),
        ("and\\or 3", "and or three"),
        ("it costs 4€ or $5", "it costs 4€ or five dollars"),
        ("Cafe\u0301 5", "Café five"),
        ("two\n lines;  one… ......", "two lines, one… …"),
        ("a\u200bb\ufeffc\x00", "abc"),
    ],
)
def test_english(text: str, expected: str) -> None:
    assert read(text, "en") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("２０１２年，５％……", "二零一二年,百分之五…"),
        ("在１０：３０开会", "在十点三十分开会"),
        ('"5"个\\', "'五'个"),
        ("晕xuan4，ju4大的200块 xian1 an1 liao3", "晕XVAN4,JV4大的两百块 XIAN1 an1 liao3"),
        ("约瑟夫·高登-莱维特有3本书", "约瑟夫-高登-莱维特有三本书"),
        ("it's 5点", "it is 五点"),
    ],
)
def test_chinese(text: str, expected: str) -> None:
    assert read(text, "zh") == expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("ሰላም፡ዓለም፤ እንዴት፥ ነህ፧ ደህና፨", "am", "ሰላም ዓለም, እንዴት, ነህ? ደህና!"),
        ("ተናጋሪ 1፡ ሰላም", "am", "ተናጋሪ 1 ሰላም"),
        ("ተናጋሪ 1: ሰላም 25%", None, "ሰላም 25%"),
        ("話者 1: ﾃｽﾄ「はい」", "ja", "話者 1, テスト'はい'"),
    ],
)
def test_amharic_and_japanese(text: str, language: str | None, expected: str) -> None:
    assert read(text, language) == expected


@pytest.mark.parametrize("code", [None, "", " ", "und", "AUTO", "mul", "unknown"])
def test_codes_that_say_nothing(code: str | None) -> None:
    assert base_language(code) is None


def test_a_language_we_have_no_rules_for_is_not_guessed() -> None:
    assert reading_of("共465篇", "yue") == "plain"
    assert reading_of("This costs 5", "klingon") == "plain"
    assert reading_of("ሰላም 5", "ti") == "plain"


@given(text=LINES)
@settings(deadline=None, max_examples=200)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    for line in (text, f" Speaker 1 :spk２： {text}"):
        assert clean_text(clean_text(line)) == clean_text(line)


@given(text=LINES, language=st.sampled_from([None, "ru", "ja", "am", "ko"]))
@settings(deadline=None, max_examples=300)
def test_normalising_twice_changes_nothing(text: str, language: str | None) -> None:
    language = language or "und"
    if reading_of(text, language) in ("plain", "ja", "am"):
        once = read(text, language)
        assert read(once, language) == once


@given(text=LINES)
@settings(deadline=None, max_examples=100)
def test_chinese_without_digits_needs_no_engine(text: str) -> None:
    """The shortcut of `Engine.read` is what the package itself answers."""
    from wetext import Normalizer

    bare = "".join(sign for sign in text if not sign.isdecimal())
    assert ENGINE.read(bare, "zh") == Normalizer(lang="zh", operator="tn").normalize(bare)


def test_the_engine_is_loaded_by_the_first_number() -> None:
    engine: Engine = open_engine("wetext")
    for text, language in ((text, language) for text in TEXTS for language in ("am", "ja", "de")):
        normalise(text, language, engine)
    normalise("没有数字的句子，就这样。", "zh", engine)
    assert not engine._readers
    normalise("第5章", "zh", engine)
    assert engine._readers
