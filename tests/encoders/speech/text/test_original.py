"""The original's rules against what the original answered."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.encoders.speech.text.goldens import ANSWERS, TOKENIZER
from woodshed.encoders.speech.text.clean import clean_text
from woodshed.encoders.speech.text.engine import open_engine
from woodshed.encoders.speech.text.languages import language_hint
from woodshed.encoders.speech.text.original import (
    is_ethiopic,
    is_japanese,
    join_cjk,
    original_normalise,
    reads_as_chinese,
)
from woodshed.encoders.speech.text.pieces import split_cjk
from woodshed.encoders.speech.text.rules import TextRules

ROWS: list[dict[str, Any]] = ANSWERS["normalize"]["rows"]
WETEXT = open_engine("wetext")


def preferred(column: str) -> str | None:
    return None if column.startswith("None") else column.removesuffix("_wetext")


@pytest.mark.parametrize("column", ["None_wetext", "zh_wetext", "en_wetext", "am", "ja", "de"])
def test_normalisation_equals_the_original(column: str) -> None:
    for row in ROWS:
        assert original_normalise(row["in"], preferred(column), WETEXT) == row[column], row["in"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tn") is None, reason="WeTextProcessing is not installed")
@pytest.mark.parametrize("column", ["None", "zh", "en"])
def test_normalisation_equals_the_original_on_linux(column: str) -> None:
    engine = open_engine("tn")
    for row in ROWS:
        assert original_normalise(row["in"], preferred(column), engine) == row[column], row["in"]


def test_detection_equals_the_original() -> None:
    for row in ROWS:
        text = row["in"]
        answers = (is_japanese(text), is_ethiopic(text), reads_as_chinese(text))
        assert answers == (row["is_japanese"], row["is_amharic"], row["use_chinese"]), text


@pytest.mark.parametrize("compat", [True, False])
def test_cleaning_equals_the_original(compat: bool) -> None:
    for row in ANSWERS["clean_text"]:
        assert clean_text(row["in"], compat=compat) == row["out"]


def test_only_the_original_leaves_a_second_speaker_tag() -> None:
    text = "Speaker 1: spk２ ： hello"
    assert clean_text(text, compat=True) == "spk２ ： hello"
    assert clean_text(text) == "hello"


def test_language_hints_equal_the_original() -> None:
    for row in ANSWERS["language_hint"]:
        assert language_hint(row["code"], row["default"]) == row["out"]
    assert language_hint("ko", "ja") == "ja"


def test_cjk_splitting_and_joining_equal_the_original() -> None:
    for row in ANSWERS["cjk"]:
        assert split_cjk(row["in"]) == row["tok"]
        assert split_cjk(row["in"], upper=False) == row["tok_noupper"]
        assert join_cjk(row["tok"]) == row["detok"]
        assert join_cjk(row["tok"], lower=True) == row["detok_lower"]


def test_ids_equal_the_original() -> None:
    rules = TextRules(TOKENIZER, compat=True)
    assert rules.vocab_size == ANSWERS["tokenize"]["vocab"]
    for row in ANSWERS["tokenize"]["rows"]:
        found = rules.ids(row["in"], row["pref"])
        assert found.ids.tolist() == row["ids_via_pieces"], row["in"]
        assert found.num_unknown == row["ids_via_pieces"].count(rules.unk_id)


def test_pinyin_and_names_are_kept_from_the_engine() -> None:
    assert original_normalise("晕xuan4是liao3，ju4大的200块", "zh", WETEXT) == "晕XVAN4是liao3,JV4大的两百块"
    assert original_normalise("约瑟夫·高登-莱维特有3本书", "zh", WETEXT) == "约瑟夫-高登-莱维特有三本书"


def test_faults_of_the_original_are_reproduced() -> None:
    assert original_normalise("Скидка 25%", None, WETEXT) == "Скидка 百分之二十五"
    assert original_normalise("the rabbit's 3 ears", "en", WETEXT) == "the rabbit is three ears"
    assert original_normalise('a "b" c', "en", WETEXT) == r"a \'b\' c"
    assert original_normalise("4€ ～ ４", "en", WETEXT) == "4€ - 4"  # no reading: the text as it is


def test_one_character_is_not_normalised() -> None:
    rules = TextRules(TOKENIZER, compat=True)
    assert rules.ids("。", "zh").normalised == "。"
    assert rules.ids(" 5 ", "en").normalised == " 5 "
    assert rules.ids("e", "en").num_unknown == 1  # no capital, so not in the vocabulary
