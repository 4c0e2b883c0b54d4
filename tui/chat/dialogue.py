"""One open conversation and the engine that answers it: what is asked, what is saved, what is shown.

Every report of the engine is saved before it is shown. Prompts that come while the model is loading or answering wait,
and are sent in their order. Each step returns what changed by it, for the screen to show, or raises BadInputError for
what makes no sense now.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from profiles.errors import BadInputError, OverstoryError
from runtime.config import EngineConfig, SamplingParams
from runtime.events import Finished, ReasoningDelta, Round, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import PromptRequest
from tui.attachments import joined_messages
from tui.chat.answering import AnswerWriter
from tui.chat.changes import (
    TROUBLES,
    Changes,
    ConversationLeft,
    EditBegun,
    PromptReturned,
    Trouble,
    TurnsChanged,
    Waiting,
    missing_model,
)
from tui.chat.commands.keymap import usual_key
from tui.chat.engine.client import EngineClient, EngineDied
from tui.chat.engine.context import context_words
from tui.chat.engine.messages import (
    Answer,
    ContextFull,
    Failed,
    Loaded,
    LoadModel,
    LoadRefused,
    OfAnswer,
    Report,
    SessionNote,
    StopLoad,
)
from tui.chat.engine.state import (
    EngineState,
    begin_answer,
    begin_load,
    measured,
    with_death,
    with_report,
    with_thinking,
)
from tui.chat.reading import Reading
from tui.chat.store.branches import Place
from tui.chat.store.records import EDITED, EndState, StoredMessage, first_kept_after_trim, index_of, unsent
from tui.chat.store.store import ConversationStore
from tui.chat.tools.calling import ToolCalls, ToolHost
from tui.chat.tools.results import ToolResult
from tui.chat.tools.servers import CallEnded, ToolServers


class Dialogue:
    """What a person and a model say to each other."""

    def __init__(
        self,
        store: ConversationStore,
        engine: EngineClient,
        *,
        params: Callable[[], SamplingParams] = SamplingParams,
        unchosen: Callable[[], frozenset[str]] = frozenset,
        new_system_prompt: Callable[[], str] = str,
        is_raw: bool = False,
        tools: ToolHost | None = None,
        key: Callable[[str], str] = usual_key,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`params` are those of the next answer; `new_system_prompt` is a new conversation's; `key` writes a binding's.

        Where `is_raw`, and with a model without a chat template, what was said is a text that the model writes on from.
        """
        self._is_raw, self._key = is_raw, key
        self.store = store
        self.state = EngineState()
        self.conversation_id: int | None = None
        self.waiting: tuple[Waiting, ...] = ()
        """Prompts of the open conversation that are sent once the engine is free, in order."""
        self.editing_id: int | None = None
        """The message that what is written next takes the place of, as another version."""
        self.tool_calls = ToolCalls(store, tools or ToolServers())
        self._engine = engine
        self._writer = AnswerWriter(store, engine, params=params, unchosen=unchosen, clock=clock)
        self._new_system_prompt = new_system_prompt
        self._next_system_prompt: str | None = None  # of a conversation that is not kept yet
        self._just_deleted: int | None = None  # a conversation, until something else is done
        self._afterwards: Callable[[], Changes] | None = None  # what an answer was interrupted for
        self.full: ContextFull | None = None
        """What makes room for what was asked last, where the context has none."""
        self._sent_ids: tuple[int, ...] = ()  # of its turns

    @property
    def answer(self) -> Answer | None:
        """What the engine was asked for and has not ended yet."""
        return self._writer.request

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being written or a tool that it calls runs, in this conversation or another."""
        return self.answer is not None or self.tool_calls.running is not None

    @property
    def _written(self) -> StoredMessage:
        return self.tool_calls.running or self._writer.message

    @property
    def num_context_tokens(self) -> int | None:
        """What the open conversation took of the context when it was answered last; None if another one was since."""
        written = self._writer.last_conversation_id
        is_known = written is not None and written == self.conversation_id
        return self.state.session.num_context_tokens or None if is_known else None

    def messages(self) -> list[StoredMessage]:
        """Return what was said in the open conversation, oldest first."""
        return [] if self.conversation_id is None else self.store.messages(self.conversation_id)

    def versions(self) -> Mapping[int, tuple[int, ...]]:
        """Return what takes turns with each message that is shown, itself included; where there is any."""
        return {} if self.conversation_id is None else self.store.versions(self.conversation_id)

    def message(self, message_id: int | None) -> StoredMessage | None:
        """Return a message of the open conversation, on whatever branch; None if it is not there, or no longer."""
        try:
            message = self.store.message(message_id or 0)
        except BadInputError:
            return None
        return message if message.conversation_id == self.conversation_id else None

    def load(self, config: EngineConfig) -> None:
        """Ask for a model; what is being answered must have ended."""
        self.expect_load()
        self._engine.send(LoadModel(config))

    def expect_load(self) -> None:
        """Let what is asked from now on wait for a model that is about to be loaded."""
        self.state = begin_load()

    def await_choice(self, sentence: str) -> Changes:
        """Load nothing before a person has chosen, as `sentence` says; prompts that wait for a model come back."""
        self.state = EngineState(sentence=sentence)
        return self.return_waiting()

    def open(self, conversation_id: int | None, *, message_id: int = 0) -> Changes:
        """Show another conversation, or an empty one; an answer that is being written goes on.

        With `message_id`, show the branch that has that message.
        """
        if conversation_id is not None:
            self.store.conversation(conversation_id)
        if message_id:
            self.store.show(message_id)
        texts = tuple(each.text for each in self.waiting)
        left = ConversationLeft(self.conversation_id, texts, self.editing_id or 0)
        self.conversation_id, self.editing_id = conversation_id, None
        self.waiting, self._afterwards, self._next_system_prompt = (), None, None
        return (left, TurnsChanged(message_id))

    def system_prompt(self) -> str:
        """Return what the model is told before the open conversation begins; empty is the model's own."""
        if self.conversation_id is not None:
            return self.store.conversation(self.conversation_id).system_prompt
        return self._new_system_prompt() if self._next_system_prompt is None else self._next_system_prompt

    def set_system_prompt(self, text: str) -> None:
        """Change what the model is told first, from the next answer on."""
        if self.conversation_id is None:
            self._next_system_prompt = text
        else:
            self.store.set_system_prompt(self.conversation_id, text)

    def delete(self, conversation_id: int) -> Changes:
        """Delete a conversation, which `undo` brings back; an answer that is being written in it is stopped."""
        title = self.store.conversation(conversation_id).shown_title
        is_answered = self.is_answering and self._written.conversation_id == conversation_id
        stopped = self.stop() if is_answered else ()
        self.store.delete_conversation(conversation_id)
        opened = self.open(None) if conversation_id == self.conversation_id else ()
        self._just_deleted = conversation_id
        return (*stopped, *opened, f"deleted: {title}; /undo or {self._key('list_undo')} in the list brings it back")

    def undelete(self, conversation_id: int | None = None) -> Changes:
        """Bring back a deleted conversation, the one deleted last unless another is named.

        It is opened if nothing else is.
        """
        deleted = self.store.list_deleted()
        if conversation_id is None and not deleted:
            return ("no conversation is deleted",)
        wanted = self._just_deleted if conversation_id is None else conversation_id
        self._just_deleted = None
        back = self.store.undo_delete(deleted[0].id if wanted is None else wanted)
        if self.conversation_id is not None:
            return (f"{back.shown_title} is back in the list",)
        return (*self.open(back.id), f"{back.shown_title} is back")

    def clear(self) -> Changes:
        """Leave the branch that is shown for an empty one, from which `undo` comes back."""
        messages = self.messages()
        if self.is_answering:
            raise self._busy()
        if not messages:
            return ("there is nothing to clear",)
        self._branch_off(messages[0].id)
        return (TurnsChanged(), f"{len(messages)} turns removed; /undo brings them back")

    def undo(self) -> Changes:
        """Show the version before, at the last place that has one, or what was cleared; or what was deleted last.

        Another conversation comes back only where it was deleted just now, or where none is open.
        """
        if self.is_answering:
            raise self._busy()
        if self._just_deleted is not None or self.conversation_id is None:
            return self.undelete()
        if (place := self.store.step_back(self.conversation_id)) is not None:
            return self._stepped(place)
        deleted = self.store.list_deleted()
        hint = f"; /deleted brings back {deleted[0].shown_title}" if deleted else ""
        return (f"there is nothing to undo in this conversation{hint}",)

    def redo(self) -> Changes:
        """Show the version after, at the last place that has one."""
        if self.is_answering:
            raise self._busy()
        place = None if self.conversation_id is None else self.store.step_forth(self.conversation_id)
        return ("there is nothing to bring back",) if place is None else self._stepped(place)

    def _stepped(self, place: Place) -> Changes:
        changes = (*self.return_waiting(), TurnsChanged(place.message_id))
        if place.num_versions == 1:
            return (*changes, "what was cleared is back")
        what = "answer" if place.is_answer else "version"
        return (*changes, f"{what} {place.number} of {place.num_versions}; /undo goes back, /redo forth")

    def show_version(self, message_id: int, *, step: int) -> Changes:
        """Show the version after that of a message that is shown, or with -1 the one before, on its own branch."""
        versions = self.versions().get(message_id, (message_id,))
        index = versions.index(message_id) + step
        if 0 <= index < len(versions):
            return self.show_branch(versions[index])
        return ("this is the first version" if step < 0 else "this is the last version",)

    def show_branch(self, message_id: int) -> Changes:
        """Show the branch that has this message; an answer that is being written goes on, and what waits comes back."""
        self.store.show(message_id)
        return (*self.return_waiting(), TurnsChanged(message_id))

    def ask(self, text: str) -> Changes:
        """Send a prompt; after `edit`, as another version of what is edited, which asks nothing if it is an answer."""
        try:
            edited = None if self.editing_id is None else self.message(self.editing_id)
        except OverstoryError as error:
            return (PromptReturned(text), Trouble("store", str(error)))
        is_asked = edited is None or edited.role == "user"
        if is_asked and (trouble := missing_model(self.state)) is not None:
            return (PromptReturned(text), trouble)
        prompt, self.editing_id = Waiting(text, self.editing_id), None
        if is_asked and (self.is_answering or self.state.phase == "loading"):
            self.waiting += (prompt,)
            return ()
        return self._ask_or_return(prompt)

    def take_back(self) -> Changes:
        """Take the last of the prompts that wait back; the answer that is being written goes on."""
        *waiting, last = self.waiting
        self.waiting, self.editing_id = tuple(waiting), last.edited_id
        return (PromptReturned(last.text),)

    def return_waiting(self) -> Changes:
        """Take all prompts that wait back."""
        texts = [each.text for each in self.waiting]
        self.editing_id = next((each.edited_id for each in self.waiting if each.edited_id), self.editing_id)
        self.waiting = ()
        return (PromptReturned(joined_messages(texts)),) if texts else ()

    def stop(self) -> Changes:
        """End the answer that is being written; what came is kept, and prompts that wait come back."""
        self._afterwards = None
        self._writer.stop()
        self.tool_calls.stop()
        return self.return_waiting()

    def stop_load(self) -> Changes:
        """Give up loading; the model that was open before is open again, where there was one."""
        self._afterwards = None
        self._engine.send(StopLoad())
        return ("the load is being stopped",)

    def edit_last(self) -> Changes:
        """Give back the last prompt, to be changed; its answer, if one is written, is ended."""
        prompts = [message for message in self.messages() if message.role == "user"]
        if not prompts:
            raise BadInputError("nothing was asked yet")
        if self.waiting:
            return self.take_back()
        return self.edit(prompts[-1].id)

    def edit(self, message_id: int) -> Changes:
        """Give back a prompt or an answer that is shown, to be put otherwise; what is written of an answer is ended."""
        messages = self.messages()
        index = index_of(message_id, messages)
        if self.is_answering and self._written.id in (each.id for each in messages[index : index + 2]):
            is_moving = self._written.id == message_id and self.state.phase != "loading"  # its last words are to come
            self._interrupt((lambda: self.edit(message_id)) if is_moving else None)
            if is_moving:
                return ()
        if messages[index].role == "tool":
            raise BadInputError("what a tool said cannot be changed; choose a prompt or an answer")
        use = "sends" if messages[index].role == "user" else "keeps"
        word = f"{self._key('send')} {use} it, as another version; {self._key('back')} leaves it as it was"
        begun = () if self.editing_id == message_id else (EditBegun(messages[index].content),)
        self.editing_id = message_id
        return (*begun, word)

    def regenerate(self, message_id: int = 0) -> Changes:
        """Write another version of an answer, with the next seed: the one named, or that follows it; else the last."""
        if message_id:
            index_of(message_id, self.messages())
        if self.is_answering and self.state.phase != "loading":
            self._interrupt(lambda: self.regenerate(message_id))
            return ()
        return self._change_last(lambda messages: self._regenerate(messages, message_id))

    def continue_answer(self) -> Changes:
        """Let the last answer go on where it ended."""
        return self._change_last(self._continue)

    def trim(self) -> Changes:
        """Leave the oldest turns out of what the model reads, and try again what failed for want of context."""
        return self._change_last(self._trim)

    def allow(self, *, is_always: bool = False) -> Changes:
        """Let the tool run that the last answer calls; with `is_always`, from now on in this conversation."""
        return self._change_last(lambda messages: self.tool_calls.run(messages, is_always=is_always))

    def refuse(self, words: str = "") -> Changes:
        """Let the tool not run that the last answer calls, and tell the model, which goes on; perhaps with words."""
        return self._change_last(lambda messages: self._keep_result(*self.tool_calls.refuse(messages, words)))

    def take_result(self, ended: CallEnded) -> Changes:
        """Save what a tool said, and let the model go on."""
        answer = self.tool_calls.end(ended.answer_id)
        return () if answer is None else self._guarded(lambda: self._keep_result(answer, ended.result))

    def read_all(self) -> Changes:
        """Let the model read turns again that were left out."""
        if self.conversation_id is None or not any(each.is_left_out for each in self.messages()):
            raise BadInputError("no turn of this conversation is left out")
        self.store.leave_out_before(self.conversation_id, 0)
        return (TurnsChanged(),)

    def end_engine(self) -> Changes:
        """Take note that the process was ended on request: its answer is over, and nothing answers until a load."""
        self._afterwards = None
        self.state = with_death("the engine was ended; /restart starts it again")
        return (*self._writer.end("stopped", {"finish_reason": "stopped"}), *self.return_waiting())

    def take(self, report: Report | EngineDied) -> Changes:
        """Save what the engine says; what it says of an answer that is over is ignored."""
        if isinstance(report, EngineDied):
            self._afterwards, self.state = None, with_death(report.sentence)
            ended = self._writer.end("failed", {"error": report.sentence, "kind": "dead"})
            return (*ended, *self.return_waiting(), Trouble("dead", report.sentence))
        if isinstance(report, OfAnswer) and (self.answer is None or self.answer.answer_id != report.answer_id):
            return ()
        said = report.event if isinstance(report, OfAnswer) else report
        if isinstance(said, TextDelta):
            self.state = with_thinking(self.state, is_thinking=False)
            return self._if_open(self._writer.write(said.text, said.guessed))
        if isinstance(said, ReasoningDelta):
            self.state = with_thinking(self.state, is_thinking=True)
            return self._if_open(self._writer.think(said.text))
        if isinstance(said, ToolCallDelta):
            self._writer.call = said.call
        if isinstance(said, Round):
            self._writer.count_tokens(said.num_emitted)
        self.state = with_report(self.state, report)
        match said:
            case Finished():
                return self._finished(said)
            case ContextFull():
                self.full = said
            case Failed(sentence=sentence, kind=kind):
                self._afterwards = None
                ended = self._writer.end("failed", {"error": sentence, "kind": kind})
                full = self.full if kind == "context" else None
                return (*ended, *self.return_waiting(), Trouble(TROUBLES.get(kind, "fault"), sentence, full))
            case LoadRefused(sentence=sentence, kind=kind):
                self._afterwards = None
                sentence = f"{sentence}; {said.loaded.target} stays open"
                told = sentence if kind == "stopped" else Trouble(TROUBLES.get(kind, "fault"), sentence)
                return (*self.return_waiting(), told)
            case SessionNote(sentences=sentences):
                return ("; ".join(sentences),)
            case Loaded():
                return self._go_on()
        return ()

    def _keep_result(self, answer: StoredMessage, result: ToolResult) -> Changes:
        """Keep what came of a call, and let the model go on where that is shown and nobody stopped it."""
        kept = self.tool_calls.keep(answer, result, shown=self.messages())
        if self.state.phase == "loading":
            return kept
        if not isinstance(kept[0], StoredMessage) or result.outcome == "stopped" or self._afterwards is not None:
            return (*kept, *self._go_on())
        return (*kept, *self._guarded(lambda: self._change_last(lambda messages: self._begin())))

    def _if_open(self, changes: Changes) -> Changes:
        """Return what is to be shown of an answer; only troubles if its conversation is not open."""
        is_open = self._writer.message.conversation_id == self.conversation_id
        return changes if is_open else tuple(each for each in changes if isinstance(each, Trouble))

    def _finished(self, finished: Finished) -> Changes:
        state: EndState = "complete" if finished.finish_reason in ("stop", "length") else "stopped"
        ended = self._writer.end(state, measured(finished))
        if self._writer.call is not None and state == "complete" and self._afterwards is None:
            return (*ended, *self._guarded(lambda: self.tool_calls.begin(self._writer.message.id, self.messages())))
        if finished.finish_reason != "context" or self._afterwards is not None:
            return (*ended, *self._go_on())
        words = "the context is full" if self.full is None else context_words(self.full)
        return (*ended, *self.return_waiting(), Trouble("context", words, self.full))

    def _ask(self, asked: Waiting) -> Changes:
        self._just_deleted = None
        edited = self.message(asked.edited_id)
        if self.conversation_id is None:
            self.conversation_id = self.store.create_conversation(system_prompt=self.system_prompt()).id
        if edited is not None and edited.role == "assistant":
            return self._put_otherwise(edited, asked.text)
        if edited is not None:
            self._branch_off(edited.id)
        prompt = self.store.append_prompt(self.conversation_id, asked.text)
        added = (prompt, *self._guarded(self._begin))
        return (TurnsChanged(),) if len(self.store.versions_of(prompt.id)) > 1 else added

    def _put_otherwise(self, edited: StoredMessage, text: str) -> Changes:
        """Keep a text of a person's as another version of an answer."""
        if text == edited.content:
            return ("the answer stays as it was",)
        self._branch_off(edited.id)
        answer = self.store.begin_answer(edited.conversation_id, model=edited.model)
        self.store.append_text(answer.id, text)
        self.store.finish_answer(answer.id, statistics={"finish_reason": EDITED})
        word = f"kept as another version; {self._key('continue')} lets the model write on from it"
        return (*self.return_waiting(), TurnsChanged(answer.id), word)

    def _change_last(self, change: Callable[[list[StoredMessage]], Changes]) -> Changes:
        """Let `change` make something else of the last answer, if there is one and the engine is free."""
        messages = self.messages()
        if not messages:
            raise BadInputError("nothing was asked yet")
        if self.is_answering:
            raise self._busy()
        if self.state.phase == "loading":
            raise BadInputError("the model is still loading; try again once it is there")
        if (trouble := missing_model(self.state)) is not None:
            return (trouble,)
        return change(messages)

    def _regenerate(self, messages: list[StoredMessage], message_id: int = 0) -> Changes:
        index = index_of(message_id, messages) if message_id else len(messages) - 1
        if messages[index].role != "assistant" and index + 1 < len(messages):
            index += 1
        if messages[index].role != "assistant":
            return self._begin()
        self._branch_off(messages[index].id)
        self._begin()
        return (TurnsChanged(),)

    def _branch_off(self, message_id: int) -> None:
        """Let what comes next take the place of a message and of all after it, which stay on their branch."""
        self.store.branch_off(message_id)
        self._just_deleted = None

    def _begin(self) -> Changes:
        """Ask for an answer to what the open conversation ends with."""
        assert self.conversation_id is not None
        reading = self._reading(self.messages())
        model = self.state.model.target if self.state.model else ""
        message = self.store.begin_answer(self.conversation_id, model=model)
        self._send_answer(message, reading, is_continued=False)
        return (message,)

    def _continue(self, messages: list[StoredMessage]) -> Changes:
        last = messages[-1]
        self.tool_calls.expect_none(messages)
        if last.role != "assistant" or not last.content:
            return self._regenerate(messages)
        reading = self._reading(messages)
        self._send_answer(self.store.continue_answer(last.id), reading, is_continued=True)
        return (TurnsChanged(),)

    def _trim(self, messages: list[StoredMessage]) -> Changes:
        assert self.conversation_id is not None
        kept = [message for message in messages if not message.is_left_out]
        if self.full is not None and messages[-1].id == self._writer.message.id:
            kept_id = self._sent_ids[self.full.num_left_out] if self.full.num_left_out else None
        else:
            kept_id = first_kept_after_trim(kept)
        if kept_id is None:
            raise BadInputError("nothing before the last prompt can be left out; /edit takes it back, to be shortened")
        self.store.leave_out_before(self.conversation_id, kept_id)
        num_left_out = sum(message.id < kept_id for message in kept)
        words = f"{num_left_out} turns are left out of what the model reads; /untrim brings them back"
        return (*self._try_again(messages), words)

    def try_again_after_load(self) -> None:
        """Once another load is over, ask again for what the context had no room for, or go on with it."""
        self._afterwards = lambda: self._change_last(self._try_again)

    def ask_anew(self) -> Changes:
        """Ask the last prompt in a conversation of its own."""
        prompts = [message.content for message in self.messages() if message.role == "user"]
        if not prompts:
            raise BadInputError("nothing was asked yet")
        return (*self.open(None), *self.ask(prompts[-1]))

    def _try_again(self, messages: list[StoredMessage]) -> Changes:
        if messages[-1].statistics.get("finish_reason") == "context":
            return self._continue(messages)
        return self._regenerate(messages) if messages[-1].state == "failed" else (TurnsChanged(),)

    def _send_answer(self, message: StoredMessage, reading: Reading, *, is_continued: bool) -> None:
        self._writer.send(message, reading, is_continued=is_continued)
        self.full, self._sent_ids = None, reading.ids
        self.state = begin_answer(self.state)

    def request_with(self, text: str) -> PromptRequest | None:
        """Return what the model would read if that was sent now, or of the conversation as it stands if it is empty.

        None while an answer makes the conversation grow, or if there is nothing that can be read, which sending says.
        """
        if self.is_answering and self._written.conversation_id == self.conversation_id:
            return None
        try:
            messages = list(takewhile(lambda each: each.id != self.editing_id, self.messages()))
            if text:
                messages.append(unsent(text, instead_of=self.message(self.editing_id)))
            return self._writer.request_of(self._reading(messages)) if messages else None
        except OverstoryError:  # another window has deleted it, or the store cannot be read
            return None

    def _reading(self, messages: Sequence[StoredMessage]) -> Reading:
        model = self.state.model
        is_text = self._is_raw or (model is not None and not model.has_chat_template)
        tools = None if is_text else self.tool_calls.offered(model)
        return Reading.of(self.system_prompt(), messages, is_text=is_text, tools=tools)

    def _go_on(self) -> Changes:
        """Do what waits for the engine to be free: what an answer was interrupted for, then the next prompt."""
        afterwards, self._afterwards = self._afterwards, None
        if afterwards is not None:
            return self._guarded(afterwards)
        if not self.waiting:
            return ()
        (prompt, *waiting), self.waiting = self.waiting, ()
        if (trouble := missing_model(self.state)) is not None:
            self.waiting = (prompt, *waiting)
            return (*self.return_waiting(), trouble)
        changes = self._ask_or_return(prompt)
        self.waiting = tuple(waiting)
        return changes

    def _interrupt(self, afterwards: Callable[[], Changes] | None) -> None:
        """End the answer to do something else with its conversation, which keeps what came of it."""
        if self._written.conversation_id != self.conversation_id:
            title = self.store.conversation(self._written.conversation_id).shown_title
            raise self._busy(f" in {title}")
        if self._written.id not in {each.id for each in self.messages()}:
            raise self._busy(" on another branch")
        self._writer.stop()
        self.tool_calls.stop()
        self._afterwards = afterwards

    def _busy(self, where: str = "") -> BadInputError:
        return BadInputError(f"an answer is being written{where}; press {self._key('back')} to stop it first")

    def _ask_or_return(self, prompt: Waiting) -> Changes:
        try:
            is_refusal = prompt.edited_id is None and self.tool_calls.waiting(self.messages()) is not None
            return self.refuse(prompt.text) if is_refusal else self._ask(prompt)
        except OverstoryError as error:
            self.editing_id = prompt.edited_id
            return (PromptReturned(prompt.text), Trouble("store", str(error)))

    def _guarded(self, act: Callable[[], Changes]) -> Changes:
        """Return what `act` changes; a store that cannot be written is trouble, not an end."""
        try:
            return act()
        except OverstoryError as error:
            return (Trouble("store", str(error)),)
