"""A setting as the words of a command line."""

from __future__ import annotations


def flag_words(flag: str, value: object) -> list[str]:
    """The words that give a value to a flag, to be quoted by whoever joins them.

    A value that begins with `-` is tied to its flag: else it would be taken for one.

    >>> flag_words("--limit", 3), flag_words("--captions", False), flag_words("--ids", ["a", "-b"])
    (['--limit', '3'], ['--no-captions'], ['--ids=a', '--ids=-b'])
    """
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    words = [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]
    if any(word.startswith("-") for word in words):
        return [f"{flag}={word}" for word in words]
    return [flag, *words]
