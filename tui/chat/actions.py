"""What a person can do: with answers, with whole conversations, and with the machine and the app.

Each command of the registry is a method `do_` + its name, which returns the changes of the dialogue that are to be
shown, if there are any.
"""

from collections.abc import Callable

from textual.theme import Theme

from profiles.errors import BadInputError
from tui.chat.changes import Changes, Trouble
from tui.chat.commands.keymap import key_now
from tui.chat.commands.slash import known_command
from tui.chat.display import OFFER, ChatDisplay
from tui.chat.editor import edit_prompt
from tui.chat.engine.client import EngineDied
from tui.chat.engine.context import check_context, context_report
from tui.chat.engine.messages import Loaded
from tui.chat.importing import import_file
from tui.chat.models import DEMO_TARGET, refuse_no_model
from tui.chat.settings.screen import SettingsScreen
from tui.chat.settings.settings import ChatSettings, changed_names, changes_that_reload, find_setting
from tui.chat.store.files import export_conversation, free_export_path, path_of
from tui.chat.store.store import UNDO_SECONDS
from tui.chat.themes import find_theme, short_name, theme_choices
from tui.chat.turns import TurnActions
from tui.chat.widgets.branches import BranchesScreen
from tui.chat.widgets.deleted import DeletedScreen
from tui.chat.widgets.dialogs import HelpScreen, LineDialog, TextDialog
from tui.chat.widgets.notice import Choice
from tui.chat.widgets.prompt import PromptArea
from tui.chat.widgets.tools import ToolsScreen
from tui.chat.widgets.turn_keys import TurnKeys
from tui.terminal_text import one_line

_LOAD_AGAIN = Choice("Load again", "load_again", "Load the model with the new settings; the conversation stays")


class Actions:
    """Every command, and what a load and a choice of theme ask for."""

    def __init__(self, chat: ChatDisplay) -> None:
        self._chat = chat
        self._may_download = False
        dialogue = chat.dialogue
        self.do_continue, self.do_clear = dialogue.continue_answer, dialogue.clear
        self.do_undo, self.do_redo, self.do_edit = dialogue.undo, dialogue.redo, dialogue.edit_last
        self.do_stop = dialogue.stop
        self.turns = TurnActions(chat, regenerate=self.regenerate)
        """What keys do with a turn that is selected."""
        self.do_turns = self.turns.begin
        self.do_trim, self.do_untrim, self.do_ask_anew = dialogue.trim, dialogue.read_all, dialogue.ask_anew

    # Answers

    def step_back(self) -> Changes:
        """Undo the nearest thing: what lies over the prompt, a prompt that waits, the answer, a notice, an edit."""
        chat, dialogue = self._chat, self._chat.dialogue
        if chat.completions.display:
            chat.completions.show(())
        elif dialogue.waiting:
            return dialogue.take_back()
        elif dialogue.is_answering:
            return dialogue.stop()
        elif dialogue.state.phase == "loading":
            return dialogue.stop_load()
        elif chat.notice.display:
            chat.notice.action_dismiss()
        elif dialogue.editing_id is not None:
            dialogue.editing_id = None
            chat.prompt.show_written()
            chat.say(f"the message stays as it was; {key_now(chat.screen, 'older')} brings your change back")
        return ()

    @property
    def word_of_step_back(self) -> str:
        """What that would do now, for the footer, which has room for four letters in 80 columns."""
        dialogue = self._chat.dialogue
        is_nearer = self._chat.completions.display or dialogue.waiting
        is_running = dialogue.is_answering or dialogue.state.phase == "loading"
        return "Stop" if is_running and not is_nearer else "Back"

    def do_regenerate(self) -> Changes:
        return self.regenerate()

    def regenerate(self, message_id: int = 0) -> Changes:
        """Ask for another answer: of a turn, or of the last one."""
        if not self._chat.dialogue.is_answering and self._chat.services.settings.is_greedy:
            self._chat.say("temperature is 0, so the answer will be the same; raise it with /set temperature 0.7")
        return self._chat.dialogue.regenerate(message_id)

    async def do_attach(self, file: str = "") -> None:
        """Attach a file; without one, what was removed last, or one that is to be chosen."""
        prompt = self._chat.prompt
        if file:
            await prompt.attach(path_of(file))
        elif not prompt.attached.bring_back():
            prompt.focus()
            prompt.insert("@" if prompt.mention is None else "")

    def do_editor(self) -> None:
        """Hand the terminal to an editor, while the app goes on."""
        self._chat.screen.run_worker(edit_prompt(self._chat), group="editor", exclusive=True)

    def do_allow(self, how: str = "") -> Changes:
        """Let the tool run that is called: once, or always in this conversation."""
        if how not in ("", "once", "always"):
            raise BadInputError(f"/allow takes once or always, not {how}; /refuse tells the model no")
        return self._chat.dialogue.allow(is_always=how == "always")

    def do_allow_always(self) -> Changes:
        return self.do_allow("always")

    def do_refuse(self, words: str = "") -> Changes:
        return self._chat.dialogue.refuse(words)

    def do_tools(self) -> None:
        """Show the servers of tools and what they can do."""
        services, dialogue = self._chat.services, self._chat.dialogue
        screen = ToolsScreen(services.tools, keep=services.keep_server, model=lambda: dialogue.state.model)
        self._chat.screen.app.push_screen(screen)

    def do_attached(self) -> None:
        if not self._chat.view.open_attachments():
            raise BadInputError("nothing is attached in this conversation")

    def do_copy(self) -> None:
        text = self._chat.view.newest_answer_text()
        if not text:
            raise BadInputError("there is no answer to copy yet")
        self._chat.screen.app.copy_to_clipboard(text)
        self._chat.say(f"answer copied ({len(text)} characters)")

    def do_code(self) -> None:
        block = self._chat.view.next_code_block()
        if block is None:
            raise BadInputError("there is no code block to copy")
        self.copy_code(block.code, block.language)

    def copy_code(self, code: str, language: str) -> None:
        """Put code into the clipboard."""
        self._chat.screen.app.copy_to_clipboard(code)
        num_lines = len(code.splitlines())
        self._chat.say(f"{num_lines} line{'s' if num_lines != 1 else ''} of {language or 'text'} copied")

    def do_wrap(self) -> None:
        """Break long lines of code, or show where they are cut."""
        is_wrapped = self._chat.view.wrap_code()
        self._chat.say("long lines of code are wrapped" if is_wrapped else "long lines of code are cut where … stands")

    def do_guesses(self) -> None:
        """Show in the answers what was guessed ahead, or their Markdown again."""
        self._chat.legend.show(self._chat.view.color_guesses())

    # Conversations

    def do_new(self) -> Changes:
        """Begin an empty conversation; it is kept from its first prompt on."""
        self._chat.prompt.focus()
        return self._chat.dialogue.open(None)

    def do_list(self) -> None:
        """Show the whole list, whatever was searched for before, and go there; or put it away."""
        chat = self._chat
        if chat.side.display:
            chat.side.display = False
            chat.prompt.focus()
        else:
            self.do_search()
            chat.side.action_focus_list()

    def do_search(self, words: str = "") -> None:
        """Show the list with the search field ready."""
        self._chat.side.display = True
        self._chat.refresh_list()
        self._chat.side.search_for(words)

    def do_rename(self, title: str = "") -> Changes:
        if not title:
            return self.ask_title(self._open_id())
        self._chat.services.store.rename_conversation(self._open_id(), title)
        return ()

    def do_delete(self) -> Changes:
        return self._chat.dialogue.delete(self._open_id())

    def do_deleted(self) -> Changes:
        """List the deleted conversations, to bring one back or to remove it for good."""
        store, dialogue = self._chat.services.store, self._chat.dialogue

        async def bring_back(conversation_id: int | None) -> None:
            if conversation_id is not None:
                await self._chat.perform(lambda: dialogue.undelete(conversation_id))

        self._chat.screen.app.push_screen(DeletedScreen(store, keep_seconds=UNDO_SECONDS), bring_back)
        return ()

    def do_branches(self) -> Changes:
        """List the branches of the conversation, to show one."""
        branches = self._chat.services.store.branches(self._open_id())
        if len(branches) < 2:
            select, edit = key_now(self._chat.screen, "turns"), key_now(self._chat.screen, "turn_edit").lower()
            return (f"this conversation has one branch; {select}, then {edit} at a turn begins another",)

        async def show(leaf_id: int | None) -> None:
            if leaf_id is not None:
                await self._chat.perform(lambda: self._chat.dialogue.show_branch(leaf_id))

        self._chat.screen.app.push_screen(BranchesScreen(branches), show)
        return ()

    def do_system(self, text: str | None = None) -> Changes:
        if text is not None:
            return self._set_system(text)
        dialog = TextDialog("System prompt of this conversation", self._chat.dialogue.system_prompt())
        return self._ask(dialog, self._set_system)

    def do_export(self, file: str = "") -> Changes:
        conversation_id = self._open_id()
        if file:
            return self._export(conversation_id, file)
        conversation = self._chat.services.store.conversation(conversation_id)
        proposed = str(free_export_path(self._chat.services.export_folder, conversation, suffix=".md"))
        dialog = LineDialog("Export to", proposed, hint="Markdown, or JSON if the name ends in .json")
        return self._ask(dialog, lambda path: self._export(conversation_id, path))

    def do_import(self, file: str = "") -> Changes:
        if not file:
            hint = "JSON that was exported: here, by ChatGPT (conversations.json), or a ShareGPT collection"
            return self._ask(LineDialog("Import from", hint=hint), self.do_import)
        importing = import_file(self._chat, path_of(file))
        self._chat.screen.run_worker(importing, group="import")
        return ()

    def ask_title(self, conversation_id: int) -> Changes:
        """Ask for another title of a conversation."""
        store = self._chat.services.store
        dialog = LineDialog("Title", one_line(store.conversation(conversation_id).title))
        return self._ask(dialog, lambda title: store.rename_conversation(conversation_id, title))

    def _open_id(self) -> int:
        if self._chat.dialogue.conversation_id is None:
            raise BadInputError("this conversation is empty; ask something first")
        return self._chat.dialogue.conversation_id

    def _set_system(self, text: str) -> Changes:
        self._chat.dialogue.set_system_prompt(text)
        return ("the system prompt holds from the next answer on" if text.strip() else "no system prompt",)

    def _export(self, conversation_id: int, file: str) -> Changes:
        store = self._chat.services.store
        export_conversation(path_of(file), store.conversation(conversation_id), store.all_messages(conversation_id))
        return (f"written to {file}",)

    def _ask(self, dialog: LineDialog | TextDialog, use: Callable[[str], Changes | None]) -> Changes:
        async def take(answer: str | None) -> None:
            if answer is not None:
                await self._chat.perform(lambda: use(answer))

        self._chat.screen.app.push_screen(dialog, take)
        return ()

    # The machine and the app

    async def load_model(self) -> None:
        """Load what the settings say; an answer that is being written is stopped first."""
        await self._chat.apply(self._chat.dialogue.stop())
        await self.start_and_load()

    async def start_and_load(self) -> None:
        """Load what the settings say while nothing is being written; a prompt that waits goes on waiting."""
        dialogue, services = self._chat.dialogue, self._chat.services
        if self._chat.needs_download and not self._may_download:
            await self._chat.apply((*dialogue.await_choice(OFFER), Trouble("no model", OFFER)))
            return
        dialogue.expect_load()
        try:
            await services.engine.start()
        except OSError as error:
            sentence = f"the engine cannot be started ({error.strerror or error}); try again when there is room"
            await self._chat.apply(dialogue.take(EngineDied(sentence)))
            return
        dialogue.load(services.settings.config())
        self._chat.show_state()

    async def note_loaded(self, loaded: Loaded) -> None:
        """Remember the model that could be loaded, and say what a user should know about it."""
        self._chat.services.settings.own = loaded.own_settings
        with self._chat.telling():
            self._chat.services.settings.keep_model()
        await self._chat.notice.withdraw()
        self._chat.show_state()
        await self._chat.show_call(is_again=True)
        self._start_tools(loaded)

    def _start_tools(self, loaded: Loaded) -> None:
        """Start the servers for a model that knows tools; say so where it knows none."""
        tools = self._chat.services.tools
        if loaded.knows_tools and not self._chat.services.settings.is_raw:
            tools.start()
        elif any(each.settings.enabled for each in tools.states):
            self._chat.say(
                f"{one_line(loaded.target)} was not made for tools, so it is told of none; /tools lists them"
            )

    async def do_larger_context(self) -> None:
        """Load the model with a context that has room for the conversation, and go on."""
        full = self._chat.dialogue.full
        if full is None:
            raise BadInputError("the context has room; /context changes it")
        await self._load_with_context(full.wanted_context_tokens)

    async def do_context(self, tokens: str = "") -> None:
        """Say how large the context is and what a larger one costs; or load the model with that one, and go on."""
        remembered, model = self._chat.services.settings, self._chat.dialogue.state.model
        if tokens:
            wanted = remembered.settings.with_text("context_tokens", tokens.replace(",", "")).context_tokens
            if model is not None and wanted == model.context_tokens:
                self._chat.say(f"the context holds {wanted:,} tokens already")
                return
            if model is not None and isinstance(wanted, int):
                check_context(model, wanted)
            await self._load_with_context(wanted)
        elif model is None:
            raise BadInputError("no model is open, so there is no context either; /model chooses one")
        else:
            sizes = [size for size, _ in model.larger_contexts[:1]]
            choices = [
                Choice(f"Context {size}", f"context {size}", "Load the model with it; nothing is lost")
                for size in sizes
            ]
            report = context_report(model, self._chat.counter.num_conversation_tokens)
            await self._chat.notice.show(report, choices, is_error=False)

    async def _load_with_context(self, context_tokens: int | str) -> None:
        """Load the model with another context, remembered once that succeeds; what had no room goes on then."""
        full = self._chat.dialogue.full
        self._chat.services.settings.choose_context(context_tokens)
        await self._chat.apply(self._chat.dialogue.stop())
        if full is not None and isinstance(context_tokens, int) and context_tokens > full.num_tokens:
            self._chat.dialogue.try_again_after_load()
        await self.start_and_load()

    def do_restart(self) -> None:
        """End the engine's process, even one that hangs, start another, and load the model again."""
        self._chat.prompt.focus()
        if not any(worker.group == "restart" and not worker.is_finished for worker in self._chat.screen.app.workers):
            self._chat.screen.run_worker(self._restart(), group="restart")

    async def do_download(self) -> None:
        """Load the demo model, which is downloaded for it."""
        self._may_download = True
        await self.do_load_again()

    async def do_load_again(self) -> None:
        await self.load_model()
        self._chat.prompt.focus()

    async def do_model(self, model: str = "") -> None:
        remembered = self._chat.services.settings
        config = remembered.config()
        if model:
            refuse_no_model(model)
            await self._load_choice((model, config.draft))
        else:
            picker = self._chat.services.picker(config, remembered.settings.recent_targets)
            picker.forget = remembered.forget_recent
            self._chat.screen.app.push_screen(picker, self._load_choice)

    async def do_tree(self, tree: str | None = None) -> None:
        await self.do_set("tree", tree)

    async def do_think(self, value: str | None = None) -> None:
        """Change whether and how long the model thinks, from the next answer on; or say how it is."""
        await self.do_set("thinking_budget", value)
        model = self._chat.dialogue.state.model
        if value is not None and model is not None and not model.can_think:
            self._chat.say(f"{one_line(model.target)} marks no thinking, so this is for a model that does")

    def do_thoughts(self) -> None:
        """Open or fold what was thought before the answers."""
        words = "shown" if self._chat.view.open_thinking() else "folded to a line"
        if self._chat.view.has_thinking:
            self._chat.say(f"thinking is {words}")
        else:
            self._chat.say(f"thinking will be {words}; no answer here has any")

    async def do_set(self, name: str = "", value: str | None = None) -> None:
        remembered = self._chat.services.settings
        if not name:
            themes = theme_choices(self._chat.screen.app.available_themes)
            problems = (*self._chat.services.keys.problems, *self._chat.services.tool_problems)
            form = SettingsScreen(
                remembered.shown, themes=themes, now=remembered.described_elsewhere(), key_problems=problems
            )
            self._chat.screen.app.push_screen(form, self._keep_settings)
            return
        found = find_setting(name).name
        if value is None:
            self._chat.say(f"{found} is {one_line(remembered.described(found))}")
        elif found == "target":
            await self.do_model(value)
        else:
            if found == "theme":
                value = find_theme(value, self._chat.screen.app.available_themes)
            self._change_settings(remembered.settings.with_text(found, value), chosen=(found,))

    async def do_theme(self, theme: str = "") -> None:
        if theme:
            await self.do_set("theme", theme)
        else:
            self._chat.screen.app.search_themes()

    def remember_theme(self, theme: Theme) -> None:
        """Keep a theme that was chosen in a list."""
        settings = self._chat.services.settings.settings
        if theme.name != self._theme_name(settings):
            self._change_settings(settings.replace(theme=short_name(theme.name)), is_told=False)

    def do_help(self, command: str = "") -> None:
        known = known_command(command.removeprefix("/")) if command else None
        bindings = [
            *PromptArea.BINDINGS,
            *TurnKeys.BINDINGS,
            *self._chat.screen.BINDINGS,
            *self._chat.screen.app.BINDINGS,
        ]
        self._chat.screen.app.push_screen(HelpScreen(bindings, command=known))

    def do_stats(self) -> None:
        panel = self._chat.panel
        panel.display = not panel.display
        self._chat.show_state()
        settings = self._chat.services.settings.settings
        self._change_settings(settings.replace(show_panel=panel.display), is_told=False)

    async def do_quit(self) -> None:
        await self._chat.screen.app.action_quit()

    async def _restart(self) -> None:
        engine, dialogue = self._chat.services.engine, self._chat.dialogue
        if engine.is_alive:
            self._chat.say("the engine is being ended")
            await self._chat.apply(dialogue.stop())
            await engine.end_process()
            await self._chat.apply(dialogue.end_engine())
        await self.load_model()

    async def _load_choice(self, choice: tuple[str, str] | None) -> None:
        if choice is None:
            return
        target, draft = choice
        self._may_download |= target == DEMO_TARGET
        with self._chat.telling():
            for name in (target, draft):
                refuse_no_model(name)
            self._chat.services.settings.choose_model(target, draft=draft)
            await self.load_model()

    async def _keep_settings(self, shown: ChatSettings | None) -> None:
        """Keep what was changed in the form, which shows what holds; another model is tried first."""
        if shown is None:
            return
        remembered = self._chat.services.settings
        changed = changed_names(remembered.shown, shown)
        kept = {name: shown[name] for name in changed if name != "target"}
        self._change_settings(remembered.settings.replace(**kept), chosen=tuple(kept))
        if "target" in changed:
            await self._load_choice((shown.target, shown.draft))

    def _change_settings(self, settings: ChatSettings, *, chosen: tuple[str, ...] = (), is_told: bool = True) -> None:
        """Let settings hold and be remembered; those that were `chosen` now hold before what the command line says."""
        remembered = self._chat.services.settings
        before = remembered.shown
        with self._chat.telling():
            remembered.replace(settings, chosen=chosen)
        settings = remembered.shown
        if settings.theme != before.theme:
            self._chat.screen.app.theme = self._theme_name(settings)
        if not is_told or (settings == before and not chosen):
            return
        needing = changes_that_reload(before, settings)
        if needing and self._chat.dialogue.state.model is not None:
            sentence = f"{', '.join(needing)} will hold once the model is loaded again"
            self._chat.screen.run_worker(self._chat.notice.show(sentence, (_LOAD_AGAIN,), is_error=False))
        else:
            names = changed_names(before, settings) or chosen
            words = (f"{name} is {one_line(str(settings[name]))[:60] or 'empty'}" for name in names)
            self._chat.say(", ".join(words))

    def _theme_name(self, settings: ChatSettings) -> str:
        return self._chat.theme_name(settings.theme)
