"""Whatever a tokenizer does to its process, the program goes on: a sentence, and the next prompt works."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from offload.errors import CheckpointError
from profiles.child_process import child_environment
from runtime.errors import OptionError
from runtime.prompts.prompt_file import Message, PromptRequest
from runtime.tokenizer.answer_text import AnswerText
from runtime.tokenizer.box import BoxLimits, Tokenizer, TokenizerBox, shared_box
from tests.support.calling_models import calling_tokenizer
from tests.support.model_factory import build_tokenizer, save_tiny_tokenizer

TEMPLATE = (
    "{% set text = messages[0]['content'] %}"
    "{% if text == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{% if text == 'big' %}{{ 'x' * 4000000000 }}{% endif %}"
    "{% if text == 'zero' %}{{ 1 / 0 }}{% endif %}"
    "{{ text }}"
)
BOOM = [{"type": "Replace", "pattern": {"String": "!"}, "content": "!" * 100}] * 8
"""Ten thousand million million from one exclamation mark."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_tokenizer(tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    file = folder / "tokenizer.json"
    definition = {**json.loads(file.read_text()), "normalizer": {"type": "Sequence", "normalizers": BOOM}}
    file.write_text(json.dumps(definition))
    return folder


@pytest.fixture(scope="module")
def box() -> Iterator[TokenizerBox]:
    box = TokenizerBox(BoxLimits(use_seconds=0.2))
    yield box
    box.close()


@pytest.fixture(scope="module")
def tokenizer(folder: Path, box: TokenizerBox) -> Tokenizer:
    return Tokenizer(folder, box)


def ask(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_conversation(PromptRequest(id="1", messages=(Message("user", text),)))


def process_of(box: TokenizerBox) -> subprocess.Popen[bytes]:
    assert box._process is not None
    return box._process


def test_marks_of_parts_are_told_and_kept(tmp_path: Path, box: TokenizerBox) -> None:
    calling_tokenizer().save_pretrained(tmp_path)
    ours, theirs = Tokenizer(tmp_path, box), calling_tokenizer()
    assert ours.answer_form.begins == ["<think>", "<tool_call>"]
    ids = theirs("<think>a</think>", add_special_tokens=False)["input_ids"]
    answer = ours.begin_answer(kept=["</think>"], tail=ids)
    assert answer.tail_text == "<think>a</think>"
    assert answer.add(ids) + answer.finish() == "a</think>"


def test_prompts_and_answers_are_those_of_transformers(tmp_path: Path, box: TokenizerBox) -> None:
    ours, theirs = Tokenizer(save_tiny_tokenizer(tmp_path), box), build_tokenizer()
    assert (len(ours), ours.eos_token_id, ours.has_chat_template) == (len(theirs), theirs.eos_token_id, True)
    turns = (Message("user", "the cat"), Message("assistant", "the dog"), Message("user", "in the end"))
    ids = ours.encode_conversation(PromptRequest(id="1", messages=turns))
    conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert ids == theirs.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
    assert ours.encode("the cat") == theirs("the cat")["input_ids"]
    assert ours.encode_pair("the ", "cat") == (theirs("the")["input_ids"], theirs(" cat")["input_ids"])
    assert ours.name(2) == "'</s>'"
    told = ours.begin_answer(has_ends=True)
    told.add(ids)
    told.finish()
    assert told.token_ends[-1] == len(told.text) and len(told.token_ends) == len(ids)
    answer, same = ours.begin_answer(("dog",), behind=ids[:2]), AnswerText(theirs, ("dog",), behind=ids[:2])
    for token_id in [*ids, *ids]:
        assert answer.add([token_id]) == same.add([token_id])
        assert (answer.token_ids, answer.is_stopped) == (same.token_ids, same.is_stopped)
    assert answer.is_stopped and answer.finish() == same.finish() and answer.text == same.text


def test_a_folder_of_the_hubs_cache_is_made_of_links_and_works(
    tmp_path: Path, box: TokenizerBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "cache" / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "0123", save_tiny_tokenizer(repository / "blobs")
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / f"{number:040}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040}")
    (tmp_path / "link").symlink_to(snapshot)
    (tmp_path / "linked-cache").symlink_to(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for folder in (snapshot, tmp_path / "link", tmp_path / "linked-cache" / snapshot.relative_to(tmp_path / "cache")):
        assert Tokenizer(folder, box).encode("the cat") == build_tokenizer()("the cat")["input_ids"]
    assert len(Tokenizer(Path("link"), box)) == len(build_tokenizer())


def test_a_folder_whose_name_is_no_utf_8_is_refused_in_a_sentence(tmp_path: Path, box: TokenizerBox) -> None:
    """The library below transformers takes no such name."""
    folder = tmp_path / os.fsdecode(b"mod\xe9le")
    save_tiny_tokenizer(tmp_path / "model").rename(folder)
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        Tokenizer(folder, box)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("zero", "ZeroDivisionError"),
        ("loop", "it computed for more than 0.2"),
        ("big", "it needed more than 1.00 GB of memory"),
    ],
)
def test_a_prompt_that_breaks_a_limit_costs_itself(tokenizer: Tokenizer, text: str, reason: str) -> None:
    with pytest.raises(OptionError, match=reason) as caught:
        ask(tokenizer, text)
    assert str(caught.value).isprintable()
    assert ask(tokenizer, "the cat") == build_tokenizer()("the cat", add_special_tokens=False)["input_ids"]


def test_a_text_that_normalizing_blows_up_costs_itself(tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match=r"it (needed more than 1.00 GB|computed for more)"):
        tokenizer.encode("!")
    assert tokenizer.encode("the cat")


def test_what_broke_a_limit_once_is_not_tried_again(tokenizer: Tokenizer, box: TokenizerBox) -> None:
    """A prompt is asked for twice, to size the caches and to answer."""
    for _ in range(2):
        with pytest.raises(OptionError, match="computed for more"):
            ask(tokenizer, "loop")
        num_started = box.num_started
    assert box.num_started == num_started


def test_a_tokenizer_that_cannot_be_loaded_within_the_limits_is_one_sentence(tmp_path: Path, box: TokenizerBox) -> None:
    save_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "x" * 10**6}
    prefix = {"type": "Prepend", "prepend": "y" * 10**6}
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": model, "normalizer": prefix}))
    try:
        assert len(Tokenizer(tmp_path, box)) > 0
    except CheckpointError as error:
        assert f"the tokenizer in {tmp_path} cannot be loaded" in str(error)


def test_a_killed_process_costs_nothing_but_its_answer(tokenizer: Tokenizer, box: TokenizerBox) -> None:
    answer = tokenizer.begin_answer()
    answer.add([5, 6])
    process_of(box).kill()
    process_of(box).wait()
    with pytest.raises(OptionError, match=r"text of this answer is lost|its process was killed"):
        answer.finish()
    assert ask(tokenizer, "the cat")


def test_text_comes_without_stop_strings_even_if_the_box_is_late(tokenizer: Tokenizer, box: TokenizerBox) -> None:
    """On a busy machine the process gets a core some milliseconds later: a round does not wait for that."""
    ids = build_tokenizer()("the cat and the dog")["input_ids"]
    late, punctual = tokenizer.begin_answer(), tokenizer.begin_answer(("zzz",))
    expected = [punctual.add([token_id]) for token_id in ids]
    released = []
    for token_id in ids:
        if token_id == ids[3]:
            process_of(box).send_signal(signal.SIGSTOP)
            released.append(late.add([token_id]))
            process_of(box).send_signal(signal.SIGCONT)
        else:
            released.append(late.add([token_id]))
    assert late.token_ids == ids and "" in released
    assert "".join(released) + late.finish() == "".join(expected) + punctual.finish() == "the cat and the dog"


def test_text_that_is_none_is_refused_before_it_is_sent(tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match="surrogate"):
        tokenizer.encode("\ud800")
    assert tokenizer.encode("the cat")


def test_threads_take_turns(tokenizer: Tokenizer) -> None:
    expected, found = ask(tokenizer, "the cat"), []

    def use() -> None:
        found.extend(ask(tokenizer, "the cat") == expected for _ in range(50))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 200


def test_what_nobody_refers_to_is_dropped(folder: Path, box: TokenizerBox) -> None:
    box.dropped_keys.clear()
    dropped = Tokenizer(folder, box)
    key = dropped._key
    del dropped
    assert key in box.dropped_keys
    Tokenizer(folder, box)
    assert key not in box.dropped_keys


def test_signals_of_the_terminal_are_for_the_program_that_asks(tokenizer: Tokenizer, box: TokenizerBox) -> None:
    ask(tokenizer, "the cat")
    process, num_started = process_of(box), box.num_started
    assert os.getsid(process.pid) != os.getsid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert ask(tokenizer, "the cat") and box.num_started == num_started


def test_ctrl_c_while_it_works_ends_the_process_and_not_the_use(folder: Path) -> None:
    box = TokenizerBox(BoxLimits(use_seconds=20.0))
    tokenizer = Tokenizer(folder, box)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ask(tokenizer, "loop")
    timer.join()
    assert ask(tokenizer, "the cat")
    box.close()
    box.close()


PROGRAM = """
import sys
from pathlib import Path
from runtime.prompts.prompt_file import Message, PromptRequest
from runtime.tokenizer.box import BoxLimits, Tokenizer, TokenizerBox, shared_box
box = shared_box() if sys.argv[2] != "loop" else TokenizerBox(BoxLimits(use_seconds=1.0))
tokenizer = Tokenizer(Path(sys.argv[1]), box)
print(box._process.pid, flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
elif sys.argv[2] == "loop":
    tokenizer.encode_conversation(PromptRequest(id="1", messages=(Message("user", "loop"),)))
"""


def is_gone(process_id: int) -> bool:
    with_patience = time.monotonic() + 60
    while time.monotonic() < with_patience:
        if not psutil.pid_exists(process_id) or psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("how", ["end", "wait", "loop"])
def test_it_goes_with_the_program_however_that_ends(folder: Path, how: str) -> None:
    """At its end, killed while the box waits, killed while the box computes."""
    command = [sys.executable, "-P", "-c", PROGRAM, str(folder), how]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=child_environment(), **pipes) as program:
        assert program.stdout is not None
        box_id = int(program.stdout.readline())
        if how != "end":
            program.kill()
        program.wait()
    assert is_gone(box_id)


def test_a_program_has_one_box() -> None:
    assert shared_box() is shared_box()


def test_a_session_of_nothing_but_closing_leaves_no_process() -> None:
    box = TokenizerBox()
    box.start()
    process = process_of(box)
    box.close()
    assert process.returncode is not None and process.stdin is not None and process.stdin.closed
