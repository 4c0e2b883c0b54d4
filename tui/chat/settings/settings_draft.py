"""Settings while they are being edited: texts that may be wrong, and what they come to.

Each text is judged by itself, with the rules and the sentences of `ChatSettings`. Knows no widget.
"""

from collections.abc import Mapping

from profiles.errors import BadInputError
from tui.chat.settings.chat_settings import ChatSettings
from tui.chat.settings.setting_words import TYPED_SETTINGS, changes_that_reload


class SettingsDraft:
    """The settings that hold, and texts for some of them."""

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        self._edited = settings
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> Mapping[str, str]:
        """A sentence for each setting whose text is not allowed."""
        return self._problems

    @property
    def settings(self) -> ChatSettings:
        """What the texts come to; a setting with a problem is as it was before that text."""
        return self._edited

    @property
    def reloading(self) -> tuple[str, ...]:
        """Settings that differ and take effect only when the model is loaded again."""
        return changes_that_reload(self._settings, self._edited)

    @property
    def num_changes(self) -> int:
        """How many settings differ."""
        return sum(self._settings.text_of(each.name) != self._edited.text_of(each.name) for each in TYPED_SETTINGS)

    def put(self, name: str, text: str) -> str | None:
        """Takes the text for that setting; returns what is wrong with it."""
        try:
            self._edited = self._edited.with_text(name, text)
        except BadInputError as error:
            self._problems[name] = str(error)
            return str(error)
        self._problems.pop(name, None)
        return None
