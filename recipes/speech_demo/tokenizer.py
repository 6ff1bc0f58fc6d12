"""Train the demo's tokenizer: about 1,000 byte-pair pieces of upper-cased English as it is spoken.

The texts of the demo's own clips are left out. The same file on every run.

    python recipes/speech_demo/tokenizer.py --work /somewhere/big --to src/woodshed/assets/speech-demo-bpe.model
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import sentencepiece

from sources import demo_names, transcripts

NUM_PIECES = 1000
ALWAYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789',.?!-…"
"""Characters with a piece of their own, seen or not: what normalised English is written in."""


def train(texts: list[str]) -> bytes:
    """A SentencePiece model: start 0, stop 1, unknown 2; no byte fallback, so what it cannot spell is seen."""
    model = io.BytesIO()
    # From memory to memory: a path would end up inside the model. Threads would not change it, but are not needed.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=NUM_PIECES,
        bos_id=0, eos_id=1, unk_id=2, pad_id=-1, byte_fallback=False, character_coverage=1.0, required_chars=ALWAYS,
        normalization_rule_name="identity", num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    demo = demo_names()
    texts = [text.upper() for name, text in transcripts(args.work).items() if name.replace("/", "-") not in demo]
    args.to.write_bytes(train(texts))
    print(f"{len(texts)} texts, {sum(len(text.split()) for text in texts)} words -> {args.to}")


if __name__ == "__main__":
    main()
