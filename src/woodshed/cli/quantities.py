"""Numbers in words: lengths of audio, times, sizes, and text that is safe to print."""

from __future__ import annotations


def audio_length(seconds: float) -> str:
    """How much audio.

    >>> audio_length(0.02), audio_length(95), audio_length(5400)
    ('0.02 s', '1.6 min', '1.50 h')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.2f} h"


def clock(seconds: float) -> str:
    """A time span as hours, minutes and seconds.

    >>> clock(59.6), clock(3723)
    ('1:00', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(num_bytes: int) -> str:
    """Bytes in binary units.

    >>> size(512), size(5 * 2**20)
    ('512 B', '5.0 MiB')
    """
    if num_bytes < 1024:
        return f"{num_bytes} B"
    scaled = float(num_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        scaled /= 1024
        if scaled < 1024:
            return f"{scaled:.1f} {unit}"
    return f"{scaled / 1024:,.1f} TiB"


def printable(text: str) -> str:
    r"""Text that no terminal misreads: control codes and bytes that are not UTF-8 become escapes.

    >>> printable("caf\xe9 \x1b[31m \udcff")
    'café \\x1b[31m \\udcff'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
