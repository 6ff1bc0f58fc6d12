"""What stands after `woodshed`: every command, its settings, its examples, and where its job is found."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from woodshed.jobs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Command:
    """What stands after `woodshed`: one word, or two."""

    name: str
    summary: str
    settings: str
    """Module of `woodshed.jobs` and class in it."""
    examples: tuple[str, ...]
    job: str | None = None
    """Module of `woodshed.jobs` whose `run` does the work; the command's own name where it is not given."""
    aliases: tuple[str, ...] = ()
    """Further names, as another tool calls the command."""
    is_layered: bool = False
    """Takes settings files and overrides besides flags."""
    is_watched: bool = True
    """Runs long enough to show progress."""

    @property
    def module(self) -> str:
        """Of the job."""
        return f"woodshed.jobs.{self.job or self.name.replace(' ', '_')}"

    def settings_model(self) -> type[Settings]:
        """The class of its settings."""
        module, _, name = self.settings.partition(".")
        model: type[Settings] = getattr(import_module(f"woodshed.jobs.{module}"), name)
        return model


COMMANDS = (
    Command(
        name="encode",
        summary="Encode a folder of audio to latents or tokens.",
        settings="settings.EncodeSettings",
        is_layered=True,
        examples=(
            "woodshed encode --input my-sounds --output-path my-latents",
            "woodshed encode --model-config vae.json --ckpt-path vae.ckpt --dataset-config data.json --output-path out",
            "woodshed encode --config run.yaml model=woodshed_tiny batch_size=8 --dry-run",
        ),
    ),
    Command(
        name="decode",
        summary="Turn encoded data back into sound files, to listen.",
        settings="settings.DecodeSettings",
        examples=("woodshed decode my-latents --limit 3", "woodshed decode my-latents --output heard --format flac"),
    ),
    Command(
        name="inspect",
        summary="Show what is in a folder of encoded data.",
        settings="settings.InspectSettings",
        is_watched=False,
        examples=("woodshed inspect my-latents", "woodshed inspect my-latents --limit 0 --json"),
    ),
    Command(
        name="verify",
        summary="Check that a folder holds what it says, and that no second of its sources is missing.",
        settings="settings.VerifySettings",
        examples=("woodshed verify my-latents", "woodshed verify my-latents --source /new/place --reencode 5"),
    ),
    Command(
        name="speech",
        summary="Make TTS training features from audio and text, for IndexTTS 2.0 and 2.5.",
        settings="speech_settings.SpeechSettings",
        is_layered=True,
        examples=(
            "woodshed speech --manifest data/manifest.jsonl --tokenizer bpe.model --output-dir features",
            "woodshed speech --dataset en=en.jsonl --dataset am=am.jsonl=am_features --output-root features",
            "woodshed speech --manifest data/manifest.jsonl --tokenizer bpe.model --dry-run",
        ),
    ),
    Command(
        name="speech demo",
        summary="Make features of embedded real speech with models that need no download.",
        settings="speech_demo_settings.SpeechDemoSettings",
        examples=("woodshed speech demo", "woodshed speech demo --output somewhere-else"),
    ),
    Command(
        name="speech models",
        summary="List, check and fetch the model files that a speech run needs.",
        settings="speech_models_settings.SpeechModelsSettings",
        is_watched=False,
        examples=("woodshed speech models", "woodshed speech models --target both --download"),
    ),
    Command(
        name="speech pairs",
        summary="Pair prompts with targets of the same speaker, as the IndexTTS2 trainers read them.",
        settings="speech_pairs_settings.SpeechPairsSettings",
        is_watched=False,
        examples=("woodshed speech pairs features", "woodshed speech pairs features --pairs-per-target 3"),
    ),
    Command(
        name="speech retokenize",
        summary="Give a folder of features another tokenizer; all but the text ids stays.",
        settings="speech_retokenize_settings.SpeechRetokenizeSettings",
        examples=(
            "woodshed speech retokenize features --tokenizer new.model --dry-run",
            "woodshed speech retokenize features --tokenizer new.model",
        ),
    ),
    Command(
        name="songs",
        summary="Prepare songs with their captions and lyrics for fine-tuning ACE-Step.",
        settings="songs_settings.SongsSettings",
        is_layered=True,
        examples=(
            "woodshed songs --audio-dir my-songs --checkpoint-dir checkpoints --model base --output my-tensors",
            "woodshed songs --dataset-json dataset.json --checkpoint-dir OWNER/NAME --output my-tensors --dry-run",
            "woodshed songs --audio-dir my-songs --checkpoint-dir checkpoints --output for-side-step --layout sidestep",
        ),
    ),
    Command(
        name="songs convert",
        summary="Turn sidecars and dataset.json into each other; nothing is lost unseen.",
        settings="songs_convert_settings.SongsConvertSettings",
        is_watched=False,
        examples=(
            "woodshed songs convert my-songs",
            "woodshed songs convert dataset.json --dry-run",
            "woodshed songs convert my-songs --to json --overwrite",
        ),
    ),
    Command(
        name="songs tag",
        summary="Add, remove, clear or list the trigger tags of all songs of a folder.",
        settings="songs_tag_settings.SongsTagSettings",
        is_watched=False,
        examples=("woodshed songs tag my-songs", "woodshed songs tag my-songs --add zed"),
    ),
    Command(
        name="songs dataset",
        summary="Gather a folder of songs and their sidecars in one dataset.json.",
        settings="songs_dataset_settings.SongsDatasetSettings",
        is_watched=False,
        examples=(
            "woodshed songs dataset my-songs",
            "woodshed songs dataset my-songs --tag zed --genre-ratio 20 --output dataset.json",
        ),
    ),
    Command(
        name="analyze",
        aliases=("fisher",),
        summary="Measure which parts of a model a data set needs, and give each the adapter rank that pays.",
        settings="analyze_settings.AnalyzeSettings",
        is_layered=True,
        examples=(
            "woodshed analyze --dataset-dir my-tensors --checkpoint-dir checkpoints --model base",
            "woodshed analyze --dataset-dir my-tensors --rank 64 --rank-min 16 --rank-max 128 --dry-run",
            "woodshed analyze --from-map my-tensors/fisher_map.json --rank 32 --output smaller_map.json",
            "woodshed analyze --compare drums/fisher_map.json strings/fisher_map.json",
        ),
    ),
    Command(
        name="settings",
        job="remember",
        summary="Remember the checkpoint folder and the variant, so that commands need not be told.",
        settings="remember_settings.RememberSettings",
        is_watched=False,
        examples=(
            "woodshed settings",
            "woodshed settings set checkpoint_dir checkpoints",
            "woodshed settings clear model",
            "woodshed settings path",
        ),
    ),
    Command(
        name="demo",
        summary="Encode, verify and decode real speech and music with the embedded model.",
        settings="settings.DemoSettings",
        examples=("woodshed demo", "woodshed demo --output somewhere-else"),
    ),
)


def command_named(name: str) -> Command | None:
    """The command of that name or alias.

    >>> command = command_named("fisher")
    >>> command.name if command else None
    'analyze'
    """
    return next((command for command in COMMANDS if name in (command.name, *command.aliases)), None)
