"""What ACE-Step reads of a song: the text prompt and the lyrics, as its inference pipeline writes them.

The prompt names an instruction, the caption and four facts; the lyrics follow a header that names their language.
Side-Step's own preprocessing differs in some of this (`side-step` below): it takes whatever the sidecar says for
granted, its length included, and gives the lyrics without a header.

Source: the prompt format of ACE-Step 1.5 (`diffusers.AceStepPipeline`), and what Side-Step 1.1.2 makes of a sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from woodshed.contracts import Json

INSTRUCTION = "Fill the audio semantic mask based on the given conditions:"
"""What ACE-Step is told to do where it makes music of a text."""
INSTRUMENTAL = "[Instrumental]"
"""Lyrics of a song without any."""
UNKNOWN = "N/A"
UNKNOWN_LANGUAGE = "unknown"
MAX_TEXT_TOKENS = 256
MAX_LYRIC_TOKENS = 2048
"""What inference reads of a text and of lyrics; the rest is cut off."""
SIDE_STEP_LYRIC_TOKENS = 512

LANGUAGES: Mapping[str, str] = {
    name: code
    for code, names in {
        "ar": "arabic", "az": "azerbaijani", "bg": "bulgarian", "bn": "bengali", "ca": "catalan", "cs": "czech",
        "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish", "fa": "persian farsi",
        "fi": "finnish", "fr": "french", "he": "hebrew", "hi": "hindi", "hr": "croatian", "ht": "haitian",
        "hu": "hungarian", "id": "indonesian", "is": "icelandic", "it": "italian", "ja": "japanese", "ko": "korean",
        "la": "latin", "lt": "lithuanian", "ms": "malay", "ne": "nepali", "nl": "dutch", "no": "norwegian",
        "pa": "punjabi", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sa": "sanskrit",
        "sk": "slovak", "sr": "serbian", "sv": "swedish", "sw": "swahili", "ta": "tamil", "te": "telugu", "th": "thai",
        "tl": "tagalog filipino", "tr": "turkish", "uk": "ukrainian", "ur": "urdu", "vi": "vietnamese",
        "yue": "cantonese", "zh": "chinese mandarin",
    }.items()
    for name in names.split()
}  # fmt: skip
"""English names of the languages that ACE-Step sings in, and its codes for them."""
CODES = frozenset(LANGUAGES.values())


@dataclass(frozen=True, slots=True)
class Prompt:
    """The two texts of a song, ready for the tokenizer."""

    text: str
    lyrics: str


def inference_prompt(song: Mapping[str, Json], *, duration_s: float) -> Prompt:
    """The texts that inference would be given for this song.

    Args:
        song: metadata of the song (`woodshed.sources.songs`).
        duration_s: its length as it is encoded, measured; whole seconds of it are named.

    >>> song = {"caption": "warm pads", "bpm": 85, "timesignature": "4/4", "lyrics": "", "is_instrumental": True}
    >>> prompt = inference_prompt(song, duration_s=31.7)
    >>> print(prompt.text)
    # Instruction
    Fill the audio semantic mask based on the given conditions:
    <BLANKLINE>
    # Caption
    warm pads
    <BLANKLINE>
    # Metas
    - bpm: 85
    - timesignature: 4
    - keyscale: N/A
    - duration: 31 seconds
    <|endoftext|>
    <BLANKLINE>
    >>> prompt.lyrics
    '# Languages\\nunknown\\n\\n# Lyric\\n[Instrumental]<|endoftext|>'
    """
    lyrics = INSTRUMENTAL if song.get("is_instrumental") else str(song.get("lyrics") or "")
    language = UNKNOWN_LANGUAGE if song.get("is_instrumental") else language_code(str(song.get("language") or ""))
    meter = time_signature(str(song.get("timesignature") or ""))
    return Prompt(
        text=_text(described(song), song, timesignature=meter, duration=int(duration_s)),
        lyrics=f"# Languages\n{language}\n\n# Lyric\n{lyrics}<|endoftext|>",
    )


def side_step_prompt(song: Mapping[str, Json], *, duration_s: float) -> Prompt:
    """The texts that Side-Step's preprocessing makes: lyrics bare, and the length as the song's metadata has it.

    Args:
        duration_s: length of the file, for a song whose metadata leaves it open.

    >>> side_step_prompt({"caption": "warm pads", "lyrics": "la"}, duration_s=3.0).lyrics
    'la'
    """
    given = song.get("given_duration_s")
    text = _text(
        described(song),
        song,
        timesignature=str(song.get("timesignature") or ""),
        duration=int(duration_s if given is None else given),
    )
    return Prompt(text=text, lyrics=str(song.get("lyrics") or "") or INSTRUMENTAL)


def described(song: Mapping[str, Json]) -> str:
    """The caption or the genre, with the song's tag.

    `prompt_override` decides which of the two, then `use_genre`; a genre that is empty gives way to the caption unless
    it is asked for by the override.

    >>> described({"caption": "pads", "genre": "ambient", "use_genre": True, "custom_tag": "zed"})
    'zed, ambient'
    """
    caption, genre = str(song.get("caption") or ""), str(song.get("genre") or "")
    override = song.get("prompt_override")
    wants_genre = override == "genre" or (override is None and bool(song.get("use_genre")))
    said = (genre if override == "genre" else genre or caption) if wants_genre else caption
    tag = str(song.get("custom_tag") or "")
    if not tag:
        return said
    position = song.get("tag_position") or "prepend"
    if position == "replace" or not said:
        return tag
    return f"{tag}, {said}" if position == "prepend" else f"{said}, {tag}"


def time_signature(written: str) -> str:
    """The beats of a bar, which is how ACE-Step names a time signature; what is not one stays as written.

    >>> [time_signature(text) for text in ("4/4", "6/8", "3", "swing", "")]
    ['4', '6', '3', 'swing', '']
    """
    match = re.fullmatch(r"\s*(\d{1,2})\s*/\s*\d{1,2}\s*", written)
    return match[1] if match else written.strip()


def language_code(written: str) -> str:
    """ACE-Step's code of a language given by code (`en`, `en-GB`) or English name; `unknown` where none is given.

    A language that ACE-Step does not list is passed on as written.

    >>> [language_code(text) for text in ("english", "EN-gb", "Mandarin", "", "klingon")]
    ['en', 'en', 'zh', 'unknown', 'klingon']
    """
    plain = written.strip().lower()
    if not plain:
        return UNKNOWN_LANGUAGE
    code = re.split(r"[-_]", plain)[0]
    return LANGUAGES.get(plain) or (code if code in CODES else plain)


def _text(said: str, song: Mapping[str, Json], *, timesignature: str, duration: int) -> str:
    return (
        f"# Instruction\n{INSTRUCTION}\n\n"
        f"# Caption\n{said}\n\n"
        f"# Metas\n"
        f"- bpm: {song.get('bpm') or UNKNOWN}\n"
        f"- timesignature: {timesignature or UNKNOWN}\n"
        f"- keyscale: {song.get('keyscale') or UNKNOWN}\n"
        f"- duration: {duration} seconds\n"
        f"<|endoftext|>\n"
    )
