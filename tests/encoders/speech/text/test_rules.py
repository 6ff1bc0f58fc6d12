"""Text ids: errors, unknown characters, threads, and that nothing outside the machine is asked."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoders.speech.text.goldens import TEXTS, TOKENIZER
from woodshed.encoders.speech.text import engine
from woodshed.encoders.speech.text.rules import MAX_CHARACTERS, TextRules
from woodshed.encoders.speech.text.unknown import UnknownCounter
from woodshed.errors import ItemError, ModelError, UsageError

RULES = TextRules(TOKENIZER)
COMPAT = TextRules(TOKENIZER, compat=True)


def test_ids_of_a_text() -> None:
    found = RULES.ids("Where's 2€?", "en")
    assert found.normalised == "Where is 2€?"
    assert found.ids.dtype == np.int32
    assert found.unknown == ("€",)
    assert found.num_unknown == 1
    assert np.count_nonzero(found.ids == RULES.unk_id) == 1


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("text", ["", " ", "\n\u3000"])
def test_no_text_has_no_ids(text: str, compat: bool) -> None:
    found = TextRules(TOKENIZER, compat=compat).ids(text, "en")
    assert found.ids.shape == (0,)
    assert found.num_unknown == 0


def test_one_character_is_a_capital_but_not_read() -> None:
    assert RULES.ids("e", "en").ids.tolist() == RULES.ids("E", "en").ids.tolist()
    assert RULES.ids("e", "en").num_unknown == 0
    assert RULES.ids("5", "en").normalised == "5"


@given(
    text=st.text(st.characters(), max_size=12) | st.text("019.:%$/-\"'\\{} aé€一あሰ\ud800", max_size=12),
    language=st.sampled_from([None, "en", "zh", "ja", "am", "ru", "xx-??", "\u0130"]),
    compat=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_any_text_gives_ids_or_says_why_not(text: str, language: str | None, compat: bool) -> None:
    rules = COMPAT if compat else RULES
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        with pytest.raises(ItemError, match="half a surrogate pair") as caught:
            rules.ids(text, language)
        assert caught.value.kind == "bad_text"
    else:
        found = rules.ids(text, language)
        assert found.num_unknown == np.count_nonzero(found.ids == rules.unk_id)
        assert (found.num_unknown > 0) == bool(found.unknown)
        assert found.ids.size == 0 or (found.ids.min() >= 0 and found.ids.max() < rules.vocab_size)


def test_a_text_no_model_takes_is_refused_before_it_is_read() -> None:
    with pytest.raises(ItemError, match=f"has {MAX_CHARACTERS + 1} characters.*split the recording") as caught:
        RULES.ids("5" * (MAX_CHARACTERS + 1), "en")
    assert caught.value.kind == "text_too_long"


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no tokenizer at .*bpe\.model"):
        TextRules(tmp_path / "bpe.model")
    for name, content in (
        ("empty", b""),
        ("cut", TOKENIZER.read_bytes()[:1000]),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ):
        path = tmp_path / f"{name}.model"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name}\.model .*SentencePiece model.*cut short"):
            TextRules(path)


def test_the_fingerprint_tells_what_ids_depend_on(tmp_path: Path) -> None:
    copy = Path(shutil.copy(TOKENIZER, tmp_path / "other name.model"))
    assert TextRules(copy).fingerprint == RULES.fingerprint
    assert RULES.fingerprint["engine"] == f"wetext {metadata.version('wetext')}"
    assert RULES.fingerprint["tokenizer"].startswith("sha256:")
    assert COMPAT.fingerprint != RULES.fingerprint


def test_a_missing_or_old_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "OLDEST", {**engine.OLDEST, "wetext": (99, 0)})
    with pytest.raises(
        UsageError, match=r"wetext [\d.]+ is too old: text ids could differ.*pip install 'wetext>=99.0'"
    ):
        TextRules(TOKENIZER)
    monkeypatch.setattr(engine, "PACKAGES", {**engine.PACKAGES, "wetext": "no-such-package-at-all"})
    with pytest.raises(UsageError, match=r"is not installed.*install woodshed\[speech\]"):
        TextRules(TOKENIZER)


def test_threads_get_what_one_thread_gets() -> None:
    jobs = [(text, language) for text in TEXTS for language in (None, "en", "zh", "am", "ja")] * 3
    alone = [RULES.ids(text, language).ids.tolist() for text, language in jobs]
    fresh = TextRules(TOKENIZER)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: fresh.ids(*job).ids.tolist(), jobs))
    assert together == alone


NO_NETWORK = """
import sys
from pathlib import Path
def refuse(event, _):
    if event.startswith(("socket.", "urllib.", "http.")):
        raise AssertionError(f"the network was asked: {event}")
sys.addaudithook(refuse)
from woodshed.encoders.speech.text.rules import TextRules
rules = TextRules(Path(sys.argv[1]))
assert rules.normalise("第5章", "zh") == "第五章"
assert rules.normalise("5 km", "en") == "five kilometers"
"""


def test_nothing_is_downloaded() -> None:
    subprocess.run([sys.executable, "-c", NO_NETWORK, str(TOKENIZER)], check=True, env=environment())


def test_the_engine_is_not_imported_where_no_text_needs_it() -> None:
    code = (
        "import sys; from pathlib import Path; from woodshed.encoders.speech.text.rules import TextRules\n"
        "TextRules(Path(sys.argv[1])).ids('ሰላም 25%', 'am'); assert 'wetext' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(TOKENIZER)], check=True, env=environment())


def environment() -> dict[str, str]:
    """Other locale, other hash seed: neither may matter."""
    source = Path(__file__).parents[4] / "src"
    return {**os.environ, "PYTHONPATH": str(source), "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONUTF8": "1"}


def test_counters_merge_and_travel() -> None:
    texts = [RULES.ids(text, "ja") for text in TEXTS]
    whole, first, second = UnknownCounter(), UnknownCounter(), UnknownCounter()
    for index, text in enumerate(texts):
        whole.add(text)
        (first if index % 3 else second).add(text)
    merged = pickle.loads(pickle.dumps(first))
    merged.merge(pickle.loads(pickle.dumps(second)))
    assert merged == whole
    assert whole.num_texts == len(TEXTS)
    assert whole.num_ids == sum(len(text.ids) for text in texts)
    assert whole.rate == whole.num_unknown / whole.num_ids > 0
    assert whole.most_common(3) == sorted(whole.characters.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    assert UnknownCounter().rate == 0
    assert UnknownCounter().warning(threshold=0) is None
