"""The grammar of --dataset, against the known answers and beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from woodshed.errors import UsageError
from woodshed.speech.dataset_spec import parse_dataset_spec, parse_dataset_specs

GOLDEN = Path(__file__).parents[1] / "golden" / "indextts2" / "pure_functions.json"
REFUSED_BY_US = {"=m.jsonl": "names no language", "am==out": "names no manifest"}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parsed(text: str, root: Path | None = None) -> tuple[str, str, str]:
    spec = parse_dataset_spec(text, root)
    return spec.language, str(spec.manifest), str(spec.output)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["dataset_spec"], ids=lambda case: case["spec"])
def test_known_answers(case: dict[str, object]) -> None:
    text, out = str(case["spec"]), case["out"]
    root = None if case["root"] is None else Path(str(case["root"]))
    if text in REFUSED_BY_US:
        with pytest.raises(UsageError, match=REFUSED_BY_US[text]):
            parse_dataset_spec(text, root)
    elif isinstance(out, dict):
        with pytest.raises(UsageError, match="write LANG=MANIFEST"):
            parse_dataset_spec(text, root)
    else:
        assert list(parsed(text, root)) == out


def test_an_explicit_output_is_not_put_below_the_root() -> None:
    assert parsed("am=m.jsonl=out", Path("root"))[2] == "out"
    assert parsed("AM=m.jsonl", Path("root"))[2] == "root/am_processed_data"
    assert parsed("am=m.jsonl= ", Path("root"))[2] == "root/am_processed_data"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("am='a=b.jsonl'", ("am", "a=b.jsonl", "am_processed_data")),
        ("am='a=b.jsonl'=c=d", ("am", "a=b.jsonl", "c=d")),
        ('am=a=b.jsonl="c=d"', ("am", "a=b.jsonl", "c=d")),
        ("am = 'a b.jsonl' = 'out' ", ("am", "a b.jsonl", "out")),
        ("am=it's.jsonl=o'ut", ("am", "it's.jsonl", "o'ut")),
    ],
)
def test_quotes(text: str, expected: tuple[str, str, str]) -> None:
    assert parsed(text) == expected


def test_a_manifest_with_an_equals_sign_is_known_by_existing(tmp_path: Path) -> None:
    (tmp_path / "a=b.jsonl").touch()
    assert parsed("am=a=b.jsonl") == ("am", "a=b.jsonl", "am_processed_data")
    assert parsed("am=a=b.jsonl=out") == ("am", "a=b.jsonl", "out")
    assert parsed("am=a=b.jsonl=out=1") == ("am", "a=b.jsonl", "out=1")
    (tmp_path / "a").touch()
    with pytest.raises(UsageError, match=r"read in two ways: a and a=b\.jsonl both exist .*in quotes"):
        parse_dataset_spec("am=a=b.jsonl", None)
    assert parsed("am='a'=b.jsonl") == ("am", "a", "b.jsonl")


def test_home_folders_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    assert parsed("am=~/m.jsonl=~/out") == ("am", "/home/anna/m.jsonl", "/home/anna/out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no manifest"),
        ("am=", "names no manifest"),
        ("am=''=out", "names no manifest"),
        ("../x=m.jsonl", r"has the language '\.\./x'"),
        ("am='a=b.jsonl", "the quote ' does not enclose one part"),
        ("am='a'b=c", "the quote ' does not enclose one part"),
        ("am=a=b=c=d", "too many parts"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_dataset_spec(text, None)
    assert caught.value.hint


def test_two_data_sets_need_two_outputs() -> None:
    one, two = parse_dataset_specs(["ja=a.jsonl", "am=b.jsonl"], None)
    assert (one.output, two.output) == (Path("ja_processed_data"), Path("am_processed_data"))
    with pytest.raises(UsageError, match=r"a\.jsonl and b\.jsonl would both be written to ja_processed_data .*OUTPUT"):
        parse_dataset_specs(["ja=a.jsonl", "JA=b.jsonl"], None)
