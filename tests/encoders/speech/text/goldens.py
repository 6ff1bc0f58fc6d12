"""The stored answers of the original's text functions, and its tiny tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "golden" / "indextts2"
TOKENIZER = FOLDER / "tiny_bpe.model"
ANSWERS: dict[str, Any] = json.loads((FOLDER / "pure_functions.json").read_text(encoding="utf-8"))
TEXTS: list[str] = [row["in"] for row in ANSWERS["normalize"]["rows"]]
