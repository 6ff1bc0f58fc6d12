"""What `woodshed settings` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from woodshed.errors import UsageError
from woodshed.jobs.complaints import closest
from woodshed.jobs.settings import Settings

Action = Literal["show", "set", "clear", "path"]
_NUM_WORDS: Mapping[Action, int] = {"show": 0, "set": 2, "clear": 1, "path": 0}


class RememberSettings(Settings):
    """Everything `woodshed settings` can be told."""

    positional: ClassVar[str | None] = "action"
    further_positionals: ClassVar[tuple[str, ...]] = ("key", "value")
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {"settings": ("action", "key", "value")}

    action: Action = Field(default="show", description="show all, set KEY VALUE, clear KEY, or the path of the file.")
    key: str | None = Field(default=None, description="What to set or clear: checkpoint_dir, or model (the variant).")
    value: str | None = Field(default=None, description="What to set it to.")

    @field_validator("action", mode="before")
    @classmethod
    def _action_is_known(cls, action: object) -> object:
        known = get_args(Action)
        if action in known:
            return action
        meant = closest(str(action), known)
        raise UsageError(
            f"woodshed settings {action} is none of {', '.join(known)}",
            hint=f"did you mean woodshed settings {meant}?" if meant else "woodshed settings --help",
        )

    @model_validator(mode="after")
    def _words_go_with_the_action(self) -> RememberSettings:
        given = sum(word is not None for word in (self.key, self.value))
        if given != _NUM_WORDS[self.action]:
            usage = {"set": " KEY VALUE", "clear": " KEY"}.get(self.action, "")
            many = "few" if given < _NUM_WORDS[self.action] else "many"
            raise UsageError(
                f"woodshed settings {self.action} has too {many} words", hint=f"woodshed settings {self.action}{usage}"
            )
        return self
