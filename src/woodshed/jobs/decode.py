"""`woodshed decode`: latents or tokens back to sound, to listen to what a model will learn from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from woodshed.audio.write import write_audio
from woodshed.contracts import Failure, Observer, Progress
from woodshed.encoders.codec_networks import ClipNetwork
from woodshed.encoders.models import Synthesiser, decode_blocks
from woodshed.errors import UsageError, WoodshedError
from woodshed.jobs.folder import made_by, read_settings
from woodshed.jobs.model import load_synthesiser, pick_device
from woodshed.jobs.report import DecodeReport
from woodshed.jobs.settings import DecodeSettings, EncodeSettings
from woodshed.jobs.songs_model import load_song_decoder
from woodshed.jobs.songs_settings import SongsSettings
from woodshed.store.names import LONGEST_NAME_BYTES, safe_name
from woodshed.store.reader import FullEntry, Reader, open_reader

MAX_LISTED = 100


def run(settings: DecodeSettings, *, observer: Observer) -> DecodeReport:
    """Decode the items of a folder, one sound file each.

    Raises:
        UsageError: none of the ids is in the folder, or it holds nothing that can be decoded.
        WoodshedError: the folder or its model cannot be read.
    """
    started = time.monotonic()
    folder, output = Path(settings.folder), settings.output_folder
    reader = open_reader(folder)
    model = _decoder_of(reader, settings.device)
    entries = list(_chosen(reader, settings))
    output.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    failures: list[Failure] = []
    audio_s = 0.0
    total_s = sum(entry.audio_s for entry in entries)

    def show() -> None:
        observer.progress(
            Progress(
                items_total=len(entries),
                items_done=len(files),
                items_failed=len(failures),
                items_skipped=0,
                audio_total_s=total_s,
                audio_done_s=audio_s,
                audio_now_s=audio_s,
                elapsed_s=time.monotonic() - started,
            )
        )

    for entry in entries:
        show()
        try:
            name = decoded_name(entry.id, settings.format)
            audio = decode_entry(reader, entry, model)
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            write_audio(output / name, audio, model.rate_hz)
        except WoodshedError as error:
            failures.append(Failure(id=entry.id, kind="decode", reason=str(error)))
            continue
        files.append(name)
        audio_s += audio.shape[1] / model.rate_hz
    show()
    return DecodeReport(
        output=str(output),
        num_decoded=len(files),
        num_failed=len(failures),
        audio_s=audio_s,
        elapsed_s=time.monotonic() - started,
        files=tuple(files[:MAX_LISTED]),
        failures=tuple(failures[:MAX_LISTED]),
    )


def _decoder_of(reader: Reader, device: str) -> Synthesiser | ClipNetwork:
    """What turns a folder's records back into sound.

    Raises:
        UsageError: nothing here can.
        ModelError: the model cannot be loaded.
    """
    match made_by(reader):
        case "encode":
            return load_synthesiser(read_settings(reader.folder, EncodeSettings), pick_device(device))
        case "songs":
            return load_song_decoder(read_settings(reader.folder, SongsSettings), pick_device(device))
        case "speech":
            raise UsageError(
                f"{reader.folder} holds features for a speech model: its codes turn into sound only there, not here",
                hint="`woodshed inspect` shows what it holds; the clips themselves are where its manifests say",
            )


def decoded_name(item_id: str, suffix: str) -> str:
    """Path of an item's sound below the output folder: as in the source, where that is a file name at all.

    >>> decoded_name("drums/Loop 1.wav", "flac"), decoded_name("../x", "wav")
    ('drums/Loop 1.wav.flac', '%2e%2e/x.wav')
    """
    return "/".join(part if _is_file_name(part) else safe_name(part) for part in item_id.split("/")) + f".{suffix}"


def _is_file_name(part: str) -> bool:
    return not part.startswith((".", "%")) and part.isprintable() and 0 < len(os.fsencode(part)) <= LONGEST_NAME_BYTES


def decode_entry(
    reader: Reader, entry: FullEntry, model: Synthesiser | ClipNetwork
) -> Float[np.ndarray, "channel time"]:
    """The sound of one item: its records' valid frames, decoded as one, cut to the length of the source."""
    frames = _joined(reader, entry)
    if not isinstance(model, ClipNetwork):
        audio = np.concatenate(list(decode_blocks(model, frames)), axis=1)
        # networks with odd strides give a few samples less than their frames stand for
        missing = max(0, entry.num_samples - audio.shape[1])
        return np.pad(audio, ((0, 0), (0, missing)))[:, : entry.num_samples]
    arrays = dict(frames)
    if model.has_scales:
        scales = [reader.arrays(record)["scales"] for record in entry.records]
        arrays["scales"] = np.concatenate(scales)
    return model.decode(arrays, num_samples=entry.num_samples)


def _joined(reader: Reader, entry: FullEntry) -> Mapping[str, Shaped[np.ndarray, "_ frame"]]:
    """Frames of all records, one after the other, without padding."""
    spec = reader.spec
    names = [spec["main"]]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for record in entry.records:
        stored = reader.arrays(record)
        for name in names:
            value = stored[name]
            if spec["arrays"][name]["axes"][0] == "frame":
                value = value.T
            valid = record.facts.get("valid_frames", value.shape[-1])
            parts[name].append(np.asarray(value[:, :valid]))
    return {name: np.concatenate(values, axis=1) for name, values in parts.items()}


def _chosen(reader: Reader, settings: DecodeSettings) -> Iterator[FullEntry]:
    wanted = set(settings.ids)
    count = 0
    for entry in reader.entries():
        if entry.status != "done" or (wanted and entry.id not in wanted):
            continue
        if settings.limit is not None and count >= settings.limit:
            break
        count += 1
        yield entry
    if wanted and not count:
        raise UsageError(
            f"none of the ids {sorted(wanted)[:5]} is in {settings.folder}", hint="`woodshed inspect` lists the ids"
        )
