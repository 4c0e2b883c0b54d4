"""What a person can do with the engine and the app itself: model, settings, tree, theme, panel.

A change is remembered at once; what needs the model to be loaded again says so and offers it.
"""

from offload.errors import OverstoryError
from tui.chat.chat_settings import ChatSettings
from tui.chat.chat_themes import theme_name
from tui.chat.conversation_actions import ConversationActions
from tui.chat.dialogue_changes import Trouble
from tui.chat.engine_messages import Loaded
from tui.chat.notice_bar import Choice
from tui.chat.remembered_settings import changed_names
from tui.terminal_text import one_line

_RELOAD_NAMES = set(ChatSettings().to_config_fields()) | {"device_memory", "host_memory"}
_LOAD_AGAIN = Choice("Load again", "restart_engine", "Load the model with the new settings; the conversation stays")


class MachineActions(ConversationActions):
    """Actions on the engine, the settings and the looks."""

    async def load_model(self) -> None:
        """Load what the settings say; an answer that is being written is stopped first."""
        await self.apply(self.dialogue.stop())
        try:
            await self.services.engine.start()
        except OSError as error:
            sentence = f"the engine cannot be started ({error.strerror or error}); try again when there is room"
            await self.apply((Trouble("dead", sentence),))
            return
        self.dialogue.load(self.services.settings.config())
        self.show_state()

    async def action_restart_engine(self) -> None:
        """Start the engine if it is gone, and load the model again."""
        await self.load_model()
        self.prompt.focus()

    def note_loaded(self, loaded: Loaded) -> None:
        """Remember the model that could be loaded, and say what a user should know about it."""
        remembered = self.services.settings
        target = remembered.config().get("target") or ""
        if remembered.settings.with_target(target) != remembered.settings:
            self.change_settings(remembered.settings.with_target(target), is_told=False)
        if self.notice.display and not self.notice.has_class("-keep"):
            self.notice.action_dismiss()
        for sentence in loaded.sentences:
            self.log(one_line(sentence))

    def action_set_tree(self, tree: str) -> None:
        """Set the tree."""
        self.action_set_setting("tree", tree)

    def action_set_setting(self, name: str = "", value: str | None = None) -> None:
        """Open the settings, say what one is, or change one."""
        settings = self.services.settings.settings
        wanted = name.lower().replace("-", "_")
        wanted = "system_prompt" if wanted == "system" else wanted
        if not name:
            self.open_settings()
            return
        try:
            if value is None:
                self.say(f"{wanted} is {settings.with_text(wanted, settings.text_of(wanted)).text_of(wanted)}")
            else:
                self.change_settings(settings.with_text(wanted, value))
        except AttributeError:
            self.say(f"{one_line(name)} is no setting; /set lists them", is_warning=True)
        except OverstoryError as error:
            self.say(str(error), is_warning=True)

    def open_settings(self) -> None:
        """Open the settings screen."""

    def change_settings(self, settings: ChatSettings, *, is_told: bool = True) -> None:
        """Let other settings hold, remember them, and say what that means."""
        names = changed_names(self.services.settings.settings, settings)
        try:
            self.services.settings.replace(settings)
        except OverstoryError as error:
            self.say(str(error), is_warning=True)
        if "theme" in names:
            self.app.theme = theme_name(settings.theme, self.services.environment, known=self.app.available_themes)
        if is_told and names:
            self._tell(settings, names)

    def action_choose_theme(self, theme: str = "") -> None:
        """Change the colours; without a name, choose from the list."""
        if not theme:
            self.app.search_themes()
        elif theme in (*self.app.available_themes, "auto"):
            self.action_set_setting("theme", theme)
        else:
            self.say(f"{one_line(theme)} is no theme; /theme lists them", is_warning=True)

    def action_toggle_machine(self) -> None:
        """Show or hide the machine panel."""

    def _tell(self, settings: ChatSettings, names: tuple[str, ...]) -> None:
        needing = [name for name in names if name in _RELOAD_NAMES]
        if needing and self.dialogue.state.model is not None:
            word = f"{', '.join(needing)} will hold once the model is loaded again"
            self.run_worker(self.notice.show(word, (_LOAD_AGAIN,), is_error=False))
        else:
            self.say(", ".join(f"{name} is {one_line(settings.text_of(name))[:60]}" for name in names))
