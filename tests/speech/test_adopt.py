"""Adoption of a folder, piece by piece: what is looked at, what is believed, and what a crash at any moment leaves."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.speech_fixtures import data_set, shared_models, tree
from tests.speech.original_folder import ARRAYS, Original, append, array, change, encoder_of, tear
from tests.store.bad_disks import CountingDisk, Killed
from woodshed.audio.probe import probe
from woodshed.contracts import Item
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.errors import ItemError, StoreError
from woodshed.jobs.speech_model import as_original
from woodshed.sources.speech_manifest import read_speech_manifest
from woodshed.speech.adopt import KEPT, LEFTOVERS, MARKER, Adoption, clear_up, demand_same_features, is_adoptable
from woodshed.speech.adopt_files import FileSet, OriginalFolder, is_originals, load
from woodshed.speech.adopt_rows import Examiner, Sound
from woodshed.speech.stems import with_stems
from woodshed.store.disk import Disk
from woodshed.store.indextts import IndexTTS
from woodshed.store.store import Store


class Quiet:
    """Takes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)

    def progress(self, progress: Any) -> None:
        raise AssertionError("adoption has no progress of its own")


class EveryCall(CountingDisk):
    """Also the calls that only adoption makes."""

    @contextmanager
    def writing(self, path: Path) -> Iterator[Callable[[bytes], object]]:
        self._step("write", path)
        with super().writing(path) as write:
            yield write

    def remove_folder(self, path: Path) -> None:
        self._step("remove the folder", path)
        super().remove_folder(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def encoder(models: Path) -> SpeechEncoder:
    return encoder_of(models)


@pytest.fixture(scope="module")
def original(encoder: SpeechEncoder) -> Original:
    return Original(encoder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("data"), (0.31, 0.5, 0.22, 0.4))


@pytest.fixture
def folder(original: Original, manifest: Path, tmp_path: Path) -> Path:
    """All rows as a batch size of 1 gives them."""
    return original.write(tmp_path / "out", manifest)


def adoption_of(folder: Path, manifest: Path, encoder: SpeechEncoder, **more: Any) -> Adoption:
    given = {"any_files": False, "observer": Quiet(), "stopped": lambda: False} | more
    return Adoption(
        folder=folder,
        rows=lambda: with_stems(read_speech_manifest(str(manifest), language=None)),
        encoder=encoder,
        original=as_original(encoder),
        **given,
    )


def opened(folder: Path, encoder: SpeechEncoder, disk: Disk | None = None) -> Store:
    spec = encoder.spec
    return Store.open(folder, layout=IndexTTS(spec=spec), fingerprint=encoder.fingerprint, spec=spec, disk=disk)


def adopt(folder: Path, manifest: Path, encoder: SpeechEncoder, disk: Disk | None = None, **more: Any) -> list[str]:
    """A whole adoption; gives its notes."""
    disk = disk or Disk()
    adoption = adoption_of(folder, manifest, encoder, disk=disk, **more)
    adoption.prepare()
    with opened(folder, encoder, disk) as store:
        notes = adoption.take_over(store)
        clear_up(store, disk)
    return notes


def done_ids(folder: Path, encoder: SpeechEncoder) -> list[str]:
    with opened(folder, encoder) as store:
        return [row_id for row_id in store.log.in_order() if (entry := store.entry(row_id)) and entry.status == "done"]


def item_of(manifest: Path, row_id: str) -> Item:
    rows = with_stems(read_speech_manifest(str(manifest), language=None))
    return next(row for row in rows if isinstance(row, Item) and row.id == row_id)


# ---- the folder


def test_folders_that_look_like_the_originals(tmp_path: Path) -> None:
    signs = ["train_manifest.jsonl", ".preprocessing_progress.txt", "worker_03/val_manifest.jsonl"]
    for number, sign in enumerate(signs):
        (tmp_path / str(number) / sign).parent.mkdir(parents=True)
        (tmp_path / str(number) / sign).touch()
        assert is_originals(tmp_path / str(number)), sign
    for name in ("codes", "text_ids"):
        assert not is_originals(tmp_path / "arrays")
        (tmp_path / "arrays" / name).mkdir(parents=True)
    assert is_originals(tmp_path / "arrays")
    (tmp_path / "arrays" / ".woodshed").mkdir()
    assert is_originals(tmp_path / "arrays"), "a crash before the folder was claimed"
    (tmp_path / "arrays" / ".woodshed" / "run.json").touch()
    assert not is_originals(tmp_path / "arrays")
    (tmp_path / "other" / "worker_1").mkdir(parents=True)
    assert not is_originals(tmp_path / "other"), "a worker without anything is anybody's"
    assert not is_originals(tmp_path / "not there")


def test_listed_ids_survive_torn_files(tmp_path: Path) -> None:
    (tmp_path / "train_manifest.jsonl").write_bytes(
        b'{"id": "a"}\n{"id": 7}\n[1]\n{"no": 1}\n\0\0\0\0\n\xff\xfe\n{"id": "a"}\n{"id": "b", "text_l'
    )
    (tmp_path / "worker_00").mkdir()
    (tmp_path / "worker_00" / "val_manifest.jsonl").write_text('{"id": "w"}')
    (tmp_path / ".preprocessing_progress.txt").write_bytes(b" p \n\n\r\nq\n\xe4\nr")
    assert OriginalFolder.at(tmp_path).listed_ids() == {"a", "7", "w", "p", "q", "\ufffd", "r"}


@pytest.mark.parametrize("row_id", ["../../x", "/etc/x", "a//b", "./a", "a/../b", "", "a~b", "a%2fb", "x\0y"])
def test_files_are_never_looked_for_elsewhere(row_id: str, tmp_path: Path) -> None:
    inner = tmp_path / "one" / "two" / "out"
    for name in ARRAYS:
        (inner / name / "a").mkdir(parents=True)
        for lured in (f"{name}/b.npy", f"{name}/a/b.npy", f"{name}/a.npy", "x.npy", "../x.npy"):
            np.save(inner / lured, np.zeros(3, np.int32))
    (tmp_path / "one" / "x.npy").touch()
    assert OriginalFolder.at(inner).find(row_id).paths == ()


def test_a_row_is_found_in_the_folder_in_workers_and_between_them(tmp_path: Path) -> None:
    def put(place: str, *names: str) -> None:
        for name in names:
            (tmp_path / place / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name / "u.npy").touch()

    put("worker_01", *ARRAYS)
    put(".", "codes")
    there = OriginalFolder.at(tmp_path).find("u")
    assert [files.group for files in there.sets] == ["worker_01"]
    assert there.paths == ("codes/u.npy", *sorted(f"worker_01/{name}/u.npy" for name in ARRAYS))
    (tmp_path / "worker_01" / "codes" / "u.npy").unlink()
    (split,) = OriginalFolder.at(tmp_path).find("u").sets
    assert split == FileSet("main+worker_01", ("worker_01/text_ids/u.npy", "codes/u.npy", *there.paths[2:4]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<i4', 'fortran_order': False, 'shape': (9000000000000,), }\n",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((\n\0",
        b"\x93NUMPY\x01\x00\x10\x00" + b"\xff" * 16,
        b"\x80\x04K\x01.",
        bytes(300),
    ],
)
def test_a_torn_array_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ItemError, match=r"^x\.npy is torn or no array") as error:
        load(tmp_path, "x.npy")
    assert error.value.kind == "unreadable"


def test_a_missing_array_an_archive_and_objects_are_told(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"^x\.npy is missing"):
        load(tmp_path, "x.npy")
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(ItemError, match=r"^x\.npy is an archive, not an array"):
        load(tmp_path, "x.npy")
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ItemError, match=r"^x\.npy is torn or no array"):
        load(tmp_path, "x.npy")


# ---- rows


def spoil_dtype(folder: Path, name: str, dtype: str) -> None:
    path = array(folder, name, "utt_001")
    np.save(path, np.load(path).astype(dtype))


SPOILT: dict[str, Callable[[Path], None]] = {
    "missing": lambda folder: array(folder, "condition", "utt_001").unlink(),
    "unreadable": lambda folder: tear(array(folder, "codes", "utt_001"), keep_bytes=140),
    "not_finite": lambda folder: change(array(folder, "emo_vec", "utt_001"), first=np.nan),
    "out_of_range": lambda folder: change(array(folder, "codes", "utt_001"), first=32),
    "padded_codes": lambda folder: np.save(array(folder, "codes", "utt_001"), np.zeros(30, np.int32)),
    "other_length": lambda folder: np.save(array(folder, "codes", "utt_001"), np.zeros(20, np.int32)),
    "other_text": lambda folder: change(array(folder, "text_ids", "utt_001"), first=5),
    "other_shape": lambda folder: spoil_dtype(folder, "condition", "float64"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_row_is_refused_with_its_reason(
    kind: str, folder: Path, manifest: Path, encoder: SpeechEncoder
) -> None:
    item, there = item_of(manifest, "utt_001"), OriginalFolder.at(folder)
    examiner = Examiner(folder, encoder)
    assert isinstance(examiner.judge(item, there.find("utt_001").sets), Sound)
    SPOILT[kind](folder)
    verdict = examiner.judge(item, there.find("utt_001").sets)
    assert isinstance(verdict, ItemError)
    assert verdict.kind == kind


def test_negative_codes_and_other_types_are_refused(folder: Path, manifest: Path, encoder: SpeechEncoder) -> None:
    item, examiner = item_of(manifest, "utt_001"), Examiner(folder, encoder)
    sets = OriginalFolder.at(folder).find("utt_001").sets
    spoil_dtype(folder, "codes", "int64")
    spoil_dtype(folder, "text_ids", "int64")
    verdict = examiner.judge(item, sets)
    assert isinstance(verdict, Sound)
    assert {str(verdict.record.arrays[name].dtype) for name in ("codes", "text_ids")} == {"int32"}
    change(array(folder, "codes", "utt_001"), first=-1)
    assert isinstance(refused := examiner.judge(item, sets), ItemError)
    assert refused.kind == "out_of_range"
    spoil_dtype(folder, "codes", "float32")
    assert isinstance(refused := examiner.judge(item, sets), ItemError)
    assert "codes/utt_001.npy holds float32 [24], not i4 [24]" in refused.message


def test_a_second_set_stands_in_for_a_spoilt_first(folder: Path, manifest: Path, encoder: SpeechEncoder) -> None:
    for name in ARRAYS:
        (folder / "worker_00" / name).mkdir(parents=True)
        shutil.copy(array(folder, name, "utt_001"), array(folder / "worker_00", name, "utt_001"))
    tear(array(folder, "emo_vec", "utt_001"), keep_bytes=130)
    verdict = Examiner(folder, encoder).judge(
        item_of(manifest, "utt_001"), OriginalFolder.at(folder).find("utt_001").sets
    )
    assert isinstance(verdict, Sound)
    assert verdict.files.group == "worker_00"


def test_half_padded_last_frames_are_not_kept_under_strict_trim(
    models: Path, original: Original, tmp_path: Path
) -> None:
    # 0.33 s are 31 energies: 16 frames, the last one half padding; 0.32 s are 30.
    manifest = data_set(tmp_path / "data", (0.33, 0.32))
    folder = original.write(tmp_path / "out", manifest)
    examiner = Examiner(folder, encoder_of(models, strict_trim=True))
    there = OriginalFolder.at(folder)
    verdicts = [examiner.judge(item_of(manifest, name), there.find(name).sets) for name in ("utt_000", "utt_001")]
    assert isinstance(verdicts[0], ItemError)
    assert verdicts[0].kind == "padded_codes"
    assert isinstance(verdicts[1], Sound)


# ---- the whole


def test_adopted_rows_stand_in_the_order_of_the_source(folder: Path, manifest: Path, encoder: SpeechEncoder) -> None:
    before = tree(folder)
    notes = adopt(folder, manifest, encoder)
    assert "4 rows that IndexTTS2's own preprocessing had made are kept; their sound went by way of 24 kHz" in notes[0]
    assert notes[1:] == [f"the old manifests, statistics and progress files are kept in {KEPT}"]
    assert done_ids(folder, encoder) == [f"utt_{number:03d}" for number in range(4)]
    assert {name: digest for name, digest in tree(folder).items() if name.endswith(".npy")} == {
        name: digest for name, digest in before.items() if name.endswith(".npy")
    }, "what numpy writes and what we write are the same bytes"
    assert not is_adoptable(folder)
    assert not (folder / LEFTOVERS).exists()
    assert not any((folder / ".woodshed" / "tmp").iterdir())


def test_nothing_is_changed_when_stopped_early_and_all_goes_on_when_stopped_late(
    folder: Path, manifest: Path, encoder: SpeechEncoder
) -> None:
    before = tree(folder)
    with pytest.raises(StoreError, match=f"stopped before anything was changed in {folder}"):
        adoption_of(folder, manifest, encoder, stopped=lambda: True).prepare()
    assert tree(folder) == before
    assert not (folder / ".woodshed").exists()
    adoption_of(folder, manifest, encoder).prepare()
    with opened(folder, encoder) as store:
        assert adoption_of(folder, manifest, encoder, stopped=lambda: True).take_over(store) == []
        clear_up(store)
    assert is_adoptable(folder)
    assert "4 rows" in adopt(folder, manifest, encoder)[0]
    assert not is_adoptable(folder)


def crowded(original: Original, manifest: Path, folder: Path) -> Path:
    """Something of everything: a row of the folder, one of a worker, one that is torn in a worker, a stray, ids."""
    original.write(folder, manifest, ids=["utt_000", "a/b"])
    original.write(folder / "worker_00", manifest, ids=["utt_001", "a/b"])
    original.write(folder / "worker_01", manifest, ids=["utt_002"])
    tear(array(folder / "worker_01", "codes", "utt_002"), keep_bytes=131)
    np.save(folder / "codes" / "stray.npy", np.zeros(3, np.int32))
    return folder


@pytest.fixture
def mixed_manifest(tmp_path: Path) -> Path:
    manifest = data_set(tmp_path / "data", (0.31, 0.5, 0.22, 0.4))
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("utt_003", "a/b"), encoding="utf-8")
    return manifest


@pytest.mark.parametrize(
    ("code", "step"),
    [
        (None, 9),
        (errno.ENOSPC, 23),
        pytest.param(None, 1, marks=pytest.mark.slow),
        pytest.param(errno.EIO, 1, marks=pytest.mark.slow),
    ],
)
def test_every_moment_may_be_the_last(
    code: int | None, step: int, original: Original, mixed_manifest: Path, encoder: SpeechEncoder, tmp_path: Path
) -> None:
    """Whichever call of the disk fails, or ends the process, the next start leaves what an undisturbed run leaves."""
    template = crowded(original, mixed_manifest, tmp_path / "template")
    kept = {path.relative_to(template) for path in template.rglob("*.jsonl")}
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(template, undisturbed)
    disk = EveryCall()
    notes = adopt(undisturbed, mixed_manifest, encoder, disk)
    wanted = tree(undisturbed)
    assert set(wanted) >= {"codes/a%2fb.npy", "codes/utt_001.npy", "codes/stray.npy", "worker_01/codes/utt_002.npy"}
    assert not any("worker_00" in name or "a/b" in name for name in wanted)
    assert disk.calls > 60
    for k in range(0, disk.calls, step):
        folder = tmp_path / f"{code}-{k}"
        shutil.copytree(template, folder)
        with pytest.raises((Killed, StoreError)):
            adopt(folder, mixed_manifest, encoder, EveryCall(k, code=code))
        again = adopt(folder, mixed_manifest, encoder, EveryCall())
        assert tree(folder) == wanted, k
        assert done_ids(folder, encoder) == ["utt_000", "utt_001", "a/b"]
        assert all((folder / KEPT / name).read_bytes() == (template / name).read_bytes() for name in kept)
        assert again in (notes, []), "it was told unless the crash came after the telling"
        shutil.rmtree(folder)


def test_a_row_that_stands_twice_in_the_source_is_not_believed(
    original: Original, encoder: SpeechEncoder, tmp_path: Path
) -> None:
    """The second clip's arrays lie under the first one's row (D16)."""
    manifest = data_set(tmp_path / "data", (0.31, 0.5))
    folder = original.write(tmp_path / "out", manifest)
    append(manifest, json.dumps({"id": "utt_000", "text": "again", "audio": "wavs/clip_001.wav"}))
    notes = adopt(folder, manifest, encoder)
    assert done_ids(folder, encoder) == ["utt_001"]
    assert any("1 of the folder's old rows" in note and "stands twice in the source" in note for note in notes)


def test_a_program_run_without_a_sound_row_is_not_believed(
    original: Original, mixed_manifest: Path, encoder: SpeechEncoder, tmp_path: Path
) -> None:
    """The only row of worker_00 has another text, so nobody can compare its models."""
    folder = original.write(tmp_path / "out", mixed_manifest, ids=["utt_000"])
    original.write(folder / "worker_00", mixed_manifest, ids=["utt_001"])
    change(array(folder / "worker_00", "text_ids", "utt_001"), first=5)
    notes = adopt(folder, mixed_manifest, encoder)
    assert done_ids(folder, encoder) == ["utt_000"]
    assert any("program run none of whose rows could be compared (unchecked)" in note for note in notes)
    assert json.loads((folder / LEFTOVERS).read_bytes()) == "utt_001"
    assert (folder / "worker_00" / "codes" / "utt_001.npy").exists(), "until it has been made anew"


def test_rows_whose_sound_is_gone_keep_their_files(
    original: Original, mixed_manifest: Path, encoder: SpeechEncoder, tmp_path: Path
) -> None:
    folder = original.write(tmp_path / "out", mixed_manifest)
    (mixed_manifest.parent / "wavs" / "clip_001.wav").unlink()
    notes = adopt(folder, mixed_manifest, encoder)
    assert any(note.startswith("1 of the folder's old rows cannot be checked") for note in notes)
    assert array(folder, "codes", "utt_001").exists()


def test_the_length_of_the_sound_is_measured_and_not_believed(
    original: Original, encoder: SpeechEncoder, tmp_path: Path
) -> None:
    manifest = data_set(tmp_path / "data", (0.31, 0.5))
    rows = [json.loads(line) | {"duration": 9.0} for line in manifest.read_text(encoding="utf-8").splitlines()]
    folder = original.write(tmp_path / "out", manifest)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    adopt(folder, manifest, encoder)
    with opened(folder, encoder) as store:
        entry = store.entry("utt_001")
        assert entry is not None
        assert entry.audio_s == pytest.approx(probe(item_of(manifest, "utt_001").path).duration_s)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"semantic": "whisper"}, "knows --semantic w2v-bert only; this run makes whisper"),
        ({"targets": ("2.5",)}, "knows --target 2.0 only; this run makes 2.5"),
        ({"targets": ("2.0", "2.5")}, "knows --target 2.0 only; this run makes 2.0 and 2.5"),
        ({"layout": "shards"}, "knows --layout indextts only; this run makes shards"),
    ],
)
def test_a_run_that_makes_something_else_is_refused(asked: dict[str, Any], told: str) -> None:
    plain: dict[str, Any] = {"targets": ("2.0",), "semantic": "w2v-bert", "layout": "indextts"}
    demand_same_features(Path("out"), **plain)
    with pytest.raises(StoreError, match=told):
        demand_same_features(Path("out"), **plain | asked)


def test_the_mark_stands_before_the_folder_is_claimed(folder: Path, manifest: Path, encoder: SpeechEncoder) -> None:
    adoption_of(folder, manifest, encoder).prepare()
    assert json.loads((folder / MARKER).read_bytes()) == {
        "trusted": ["main"], "duplicates": [], "num_strays": 0, "strays": [],
    }  # fmt: skip
    assert not (folder / ".woodshed" / "run.json").exists()
