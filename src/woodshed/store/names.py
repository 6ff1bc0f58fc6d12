"""Names of files: any id becomes a safe one, and no path leaves the output folder."""

from __future__ import annotations

import hashlib
import string

from woodshed.errors import StoreError

LONGEST_NAME_BYTES = 200
_PLAIN = frozenset((string.ascii_lowercase + string.digits + "-_.").encode())
_UPPER = frozenset(string.ascii_uppercase.encode())
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_HASH_DIGITS = 40


def safe_name(text: str) -> str:
    """A file name for any id: different ids give different names, also where case is ignored; no separators, no
    leading dot, nothing that Windows reserves, at most 200 bytes.

    Lower-case letters, digits, `-`, `_` and inner dots stay; a capital gets `~` before it; every other byte of the
    UTF-8 form becomes `%xx`. What is too long is cut and ends in `%%` and a hash of the whole id.

    >>> safe_name("Kick 01.wav"), safe_name("../etc"), safe_name("nul.txt"), safe_name("a/b")
    ('~kick%2001.wav', '%2e.%2fetc', '%6eul.txt', 'a%2fb')
    """
    raw = text.encode("utf-8", "surrogatepass")
    reserved = text.split(".", 1)[0] in _RESERVED
    parts = []
    for index, byte in enumerate(raw):
        at_edge = byte == ord(".") and index in (0, len(raw) - 1)
        if byte in _UPPER:
            parts.append("~" + chr(byte).lower())
        elif byte not in _PLAIN or at_edge or (reserved and index == 0):
            parts.append(f"%{byte:02x}")
        else:
            parts.append(chr(byte))
    return shortened("".join(parts) or "%", raw, LONGEST_NAME_BYTES)


def shortened(name: str, raw: bytes, longest: int) -> str:
    """An escaped name of at most `longest` bytes: what is too long is cut and ends in `%%` and a hash of `raw`."""
    if len(name) <= longest:
        return name
    tail = "%%" + hashlib.blake2b(raw, digest_size=_HASH_DIGITS // 2).hexdigest()
    return name[: longest - len(tail)] + tail


def checked_relpath(path: str) -> str:
    """The path of an output file, if it stays inside the folder and away from its log.

    >>> checked_relpath("0/0000000000012.npy")
    '0/0000000000012.npy'

    Raises:
        StoreError: it is absolute, climbs, or is not in its plainest form.
    """
    parts = path.split("/")
    if "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in parts) or parts[0] == ".woodshed":
        raise StoreError(f"{path!r} is no file name inside an output folder", hint="report this layout's mistake")
    return path
