"""Tests check the annotations of every function of ours, shapes and types, at each call: see `addopts` in pyproject."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""As type checkers have it, an int is good where a float is asked for."""
