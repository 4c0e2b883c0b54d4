"""What a person can do with the engine and the app itself: model, settings, tree, theme, panel.

A change is remembered at once; what needs the model to be loaded again says so and offers it.
"""

from dataclasses import replace

from textual import work
from textual.binding import Binding
from textual.theme import Theme

from tui.chat.actions import ConversationActions
from tui.chat.commands.registry import COMMANDS
from tui.chat.engine.messages import Loaded
from tui.chat.settings.chat_settings import ChatSettings
from tui.chat.settings.remembered_settings import changed_names
from tui.chat.settings.setting_words import changes_that_reload, find_setting
from tui.chat.settings.settings_screen import SettingsScreen
from tui.chat.themes import AUTO, theme_name
from tui.chat.widgets.help import HelpScreen, command_help
from tui.chat.widgets.notice import Choice
from tui.chat.widgets.picker import ModelChoice, ModelPicker
from tui.chat.widgets.prompt import PromptArea
from tui.terminal_text import one_line

_COMMAND_ACTIONS = {command.action for command in COMMANDS}
_LOAD_AGAIN = Choice("Load again", "load_again", "Load the model with the new settings; the conversation stays")


class MachineActions(ConversationActions):
    """Actions on the engine, the settings and the looks."""

    async def load_model(self) -> None:
        """Load what the settings say; an answer that is being written is stopped first."""
        await self.apply(self.dialogue.stop())
        await self.start_and_load()

    async def start_and_load(self) -> None:
        """The same while nothing is being written; a prompt that waits goes on waiting."""
        self.dialogue.expect_load()
        try:
            await self.services.engine.start()
        except OSError as error:
            sentence = f"the engine cannot be started ({error.strerror or error}); try again when there is room"
            await self.apply(self.dialogue.fail_to_start(sentence))
            return
        self.dialogue.load(self.services.settings.config())
        self.show_state()

    def action_restart_engine(self) -> None:
        """End the engine's process, even one that hangs, start another, and load the model again."""
        self.prompt.focus()
        if not any(worker.group == "restart" and not worker.is_finished for worker in self.workers):
            self._restart_engine()

    @work(group="restart")
    async def _restart_engine(self) -> None:
        if self.services.engine.is_alive:
            self.say("the engine is being ended")
            await self.apply(self.dialogue.stop())
            await self.services.engine.end_process()
            await self.apply(self.dialogue.end_engine())
        await self.load_model()

    async def action_load_again(self) -> None:
        """Load the model with the settings as they are now."""
        await self.load_model()
        self.prompt.focus()

    async def action_choose_model(self, model: str = "") -> None:
        """Load the model that is named; without a name, choose from the list."""
        remembered = self.services.settings
        if model:
            await self._load_choice(ModelChoice(model, remembered.config()["draft"]))
        else:
            config = remembered.config()
            source = self.services.models(config, remembered.settings.recent_targets)
            self.app.push_screen(ModelPicker(source, draft=config["draft"]), self._load_choice)

    async def _load_choice(self, choice: ModelChoice | None) -> None:
        if choice is None:
            return
        with self.telling():
            self.services.settings.choose_model(choice.target, draft=choice.draft)
        await self.load_model()

    async def note_loaded(self, loaded: Loaded) -> None:
        """Remember the model that could be loaded, and say what a user should know about it."""
        remembered = self.services.settings
        target = remembered.config().get("target") or ""
        if remembered.settings.with_target(target) != remembered.settings:
            self.change_settings(remembered.settings.with_target(target), is_told=False)
        await self.notice.withdraw()
        self.view.show_notes(loaded.sentences)

    def action_set_tree(self, tree: str) -> None:
        """Set the tree."""
        self.action_set_setting("tree", tree)

    def action_set_setting(self, name: str = "", value: str | None = None) -> None:
        """Open the settings, say what one is, or change one."""
        if not name:
            self.open_settings()
            return
        settings = self.services.settings.settings
        with self.telling():
            found = find_setting(name).name
            if value is None:
                self.say(f"{found} is {settings.text_of(found) or 'empty'}")
            else:
                self.change_settings(settings.with_text(found, value))

    def open_settings(self) -> None:
        """Open the settings screen."""

        def keep(settings: ChatSettings | None) -> None:
            if settings is not None:
                self.change_settings(settings)

        themes = (AUTO, *sorted(self.app.available_themes))
        self.app.push_screen(SettingsScreen(self.services.settings.settings, themes=themes), keep)

    def change_settings(self, settings: ChatSettings, *, is_told: bool = True) -> None:
        """Let other settings hold, remember them, and say what that means."""
        before = self.services.settings.settings
        with self.telling():
            self.services.settings.replace(settings)
        if settings.theme != before.theme:
            self.app.theme = theme_name(settings.theme, self.services.environment, known=self.app.available_themes)
        if is_told and settings != before:
            self._tell(before, settings)

    def action_choose_theme(self, theme: str = "") -> None:
        """Change the colours; without a name, choose from the list."""
        if not theme:
            self.app.search_themes()
        elif theme in (*self.app.available_themes, "auto"):
            self.action_set_setting("theme", theme)
        else:
            self.say(f"{one_line(theme)} is no theme; /theme lists them", is_warning=True)

    def remember_theme(self, theme: Theme) -> None:
        """Keep a theme that was chosen in a list."""
        settings = self.services.settings.settings
        shown = theme_name(settings.theme, self.services.environment, known=self.app.available_themes)
        if theme.name != shown:
            self.change_settings(replace(settings, theme=theme.name), is_told=False)

    def action_show_help(self, command: str = "") -> None:
        """Show keys and commands, or say how one command is used."""
        if command:
            self.say(command_help(command))
        else:
            self.app.push_screen(HelpScreen(self.other_keys()))

    def other_keys(self) -> list[tuple[str, str]]:
        """Keys beside those of the commands, with what they do."""
        bindings = [binding for binding in PromptArea.BINDINGS if isinstance(binding, Binding)]
        own = [binding for _, binding in self._bindings if binding.action not in _COMMAND_ACTIONS]
        explained = {(binding.action, binding.tooltip) for binding in (*bindings, *own) if binding.tooltip}
        keys = {
            words: ",".join(binding.key for binding in (*bindings, *own) if binding.action == action)
            for action, words in sorted(explained)
        }
        return [(key, words) for words, key in keys.items()]

    def action_toggle_machine(self) -> None:
        """Show or hide the machine panel, now and at the next start."""
        self.machine.display = not self.machine.display
        self.show_state()
        settings = self.services.settings.settings
        self.change_settings(replace(settings, show_panel=self.machine.display), is_told=False)

    def _tell(self, before: ChatSettings, settings: ChatSettings) -> None:
        needing = changes_that_reload(before, settings)
        if needing and self.dialogue.state.model is not None:
            word = f"{', '.join(needing)} will hold once the model is loaded again"
            self.run_worker(self.notice.show(word, (_LOAD_AGAIN,), is_error=False))
        else:
            names = changed_names(before, settings)
            self.say(", ".join(f"{name} is {one_line(settings.text_of(name))[:60] or 'empty'}" for name in names))
