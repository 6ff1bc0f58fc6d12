"""`woodshed verify --repair`: what is damaged is taken back, what is derived from the log is written again.

Nothing is computed, so no model is needed. An item whose files are not as committed, or whose arrays no trainer could
use, is committed as failed of kind `taken_back`: what is left of it goes, it leaves the manifests, and the next run
makes it again, in its old place. After that run the folder is, byte for byte, one that was never damaged.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from woodshed.contracts import ArraySpec, Json, Layout, Observer, RecordSpec
from woodshed.jobs import speech_verify
from woodshed.jobs.findings import Findings
from woodshed.jobs.folder import Command, command_line, made_by, read_settings
from woodshed.jobs.report import VerifyReport
from woodshed.jobs.settings import EncodeSettings, Settings
from woodshed.jobs.songs_settings import SongsSettings
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.plan import TAKEN_BACK
from woodshed.store.entries import SourceFacts
from woodshed.store.indextts import IndexTTS
from woodshed.store.reader import Reader, Totals
from woodshed.store.shards import Shards
from woodshed.store.sidestep import SideStep
from woodshed.store.stable_audio import StableAudio
from woodshed.store.store import Store

_SETTINGS: Mapping[Command, tuple[type[Settings], str]] = {
    "encode": (EncodeSettings, "output_path"),
    "speech": (SpeechSettings, "output_dir"),
    "songs": (SongsSettings, "output"),
}
"""Of each command that makes folders: its settings, and the field that names the folder."""


def open_store(reader: Reader) -> Store:
    """The writing side of a folder, for whom its models are absent.

    Raises:
        StoreError: a run is writing to it, its log or a plan is damaged, or the disk refuses.
    """
    spec = _spec_of(reader.spec)
    layouts: Mapping[str, Layout] = {
        IndexTTS.name: IndexTTS(spec=spec),
        Shards.name: Shards(spec=spec),
        SideStep.name: SideStep(spec=spec),
        StableAudio.name: StableAudio(spec=spec, window_samples=reader.fingerprint.get("window_samples")),
    }
    return Store.open(reader.folder, layout=layouts[reader.layout], fingerprint=None, spec=spec)


def _spec_of(plain: Mapping[str, Json]) -> RecordSpec:
    arrays = {name: ArraySpec(**{**own, "axes": tuple(own["axes"])}) for name, own in plain["arrays"].items()}
    return RecordSpec(**{**plain, "arrays": arrays, "codebook_sizes": tuple(plain["codebook_sizes"])})


def mend(store: Store, reader: Reader, findings: Findings, report: VerifyReport, observer: Observer) -> VerifyReport:
    """Mend what can be mended of what was found, and say what is left to do."""
    observer.message("taking back what is damaged")
    taken_back = _take_back(store, reader, findings)
    if made_by(reader) == "speech":
        observer.message("writing the manifests again")
        speech_verify.derive(store, reader)
    notes = [*report.notes, *waiting_notes(reader, store.totals)]
    if report.num_problems > findings.num_mendable:
        notes.append("what --repair cannot mend has to be restored from a backup, moved away, or made anew by a run")
    return replace(report, num_mended=findings.num_mendable, num_taken_back=len(taken_back), notes=tuple(notes))


def advice(reader: Reader) -> str:
    """What to do about damage that `mend` mends."""
    command = shlex.join(["woodshed", "verify", str(reader.folder), "--repair"])
    return f"{command} takes back what is damaged, so that the next run makes it again, and writes anew what is derived"


def waiting_notes(reader: Reader, totals: Totals) -> list[str]:
    """What is to be made again, and by which command."""
    num_waiting = totals.failure_kinds.get(TAKEN_BACK, 0)
    if not num_waiting:
        return []
    command = made_by(reader)
    model, output = _SETTINGS[command]
    made = read_settings(reader.folder, model)
    # The folder may have moved since.
    here = {output: reader.folder.absolute()}
    again = command_line(command, made.model_copy(update=here))
    return [f"{num_waiting} items were damaged and wait to be made again; run: {again}"]


def _take_back(store: Store, reader: Reader, findings: Findings) -> dict[str, str]:
    """Commit damaged items as failed, and write the shards again that held them. Gives ids and reasons."""
    spoilt = dict(findings.spoilt)
    if findings.spoilt_shards:
        for entry in reader.entries():
            if entry.shard in findings.spoilt_shards and any(record.shard == entry.shard for record in entry.records):
                spoilt.setdefault(entry.id, f"a file of shard {entry.shard} is damaged")
    changed = set()
    for item_id, reason in spoilt.items():
        known = reader.log.entry(item_id)
        assert known is not None, "what is spoilt was committed"
        source = SourceFacts(
            id=item_id,
            size_bytes=known.size_bytes,
            mtime_ns=known.mtime_ns,
            digest=known.digest,
            meta_digest=known.meta_digest,
            position=known.position,
            shard=known.shard,
        )
        store.fail(source, kind=TAKEN_BACK, reason=reason)
        if known.shard is not None and known.shard in reader.log.shards:
            changed.add(known.shard)
    store.commit()
    store.expect_shards({shard: store.log.num_items_by_shard[shard] for shard in changed})
    store.commit()
    return spoilt
