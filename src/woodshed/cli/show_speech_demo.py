"""What `woodshed speech demo` has to say when it is done, for people."""

from __future__ import annotations

import shlex

from rich.console import Group

from woodshed.cli.parts import failure_table, line_of, table_of
from woodshed.cli.quantities import clock
from woodshed.jobs.speech_demo import SpeechDemoReport


def lines_of(report: SpeechDemoReport) -> Group:
    """The report, ready to be printed."""
    rows = [
        (
            row.id,
            row.text,
            f"{row.duration_s:.1f}",
            f"{row.num_text_ids}",
            f"{row.num_codes}",
            " ".join(map(str, row.first_codes)),
        )
        for row in report.rows
    ]
    folder = shlex.quote(report.output)
    tries = (
        f"woodshed inspect {folder}",
        f"cat {folder}/stats.json",
        "woodshed speech models    (what IndexTTS2's own features need)",
        "woodshed speech --manifest MANIFEST --config checkpoints/config.yaml --dry-run",
    )
    return Group(
        line_of(f"made and verified features of {len(rows)} utterances in {clock(report.elapsed_s)}"),
        table_of(("utterance", "text", "s", "text ids", "codes", "the first codes"), rows),
        *failure_table(report.verified.problems, report.verified.num_problems),
        line_of("these are codes of Whisper tiny.en (50 a second) by a codebook of Woodshed's, not IndexTTS2's own;"),
        line_of("condition and emo_vec need IndexTTS2's checkpoints and are absent, as stats.json says"),
        line_of("try next:"),
        *(line_of(f"  {step}") for step in tries),
    )
