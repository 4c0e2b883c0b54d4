import errno
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from profiles.errors import OverstoryError
from runtime.errors import OptionError
from runtime.events import Finished
from runtime.prompts import result_file
from runtime.prompts.headless import PromptResult
from runtime.prompts.result_file import ResultFile, ResultStream, finished_ids, format_record
from runtime.prompts.result_format import OWN_FORMAT
from tests.support.answer_fakes import STATISTICS
from tests.support.paths import ROOT

GOOD = PromptResult(id="a", line_number=1, finished=Finished("stop", "first\nänswer", STATISTICS))
OTHER = PromptResult(id="b", line_number=2, finished=Finished("length", "second", STATISTICS))
FAILED = PromptResult(id="c", line_number=3, error="the link is gone")


def line(result):
    return format_record(result.to_record()).encode() + b"\n"


def append(path, *results, is_resumed=False):
    with ResultFile(path, is_resumed=is_resumed) as file:
        for result in results:
            file.append(result)
        return set(file.finished_ids)


def test_a_stream_gets_one_flushed_line_per_result():
    stream = io.StringIO()
    writer = ResultStream(stream)
    writer.append(GOOD)
    assert json.loads(stream.getvalue())["text"] == "first\nänswer"
    assert stream.getvalue().count("\n") == 1
    assert writer.finished_ids == ()


def test_terminal_controls_are_escaped_and_survive_the_round_trip():
    """JSON leaves U+009B as it is, and a terminal would take it for the start of an escape sequence."""
    text = "\x1b[31m \x9b31m \x7f \u2028 \u2029 日本 😀"
    written = format_record({"text": text})
    assert json.loads(written) == {"text": text}
    assert not set("\x1b\x9b\x7f\u2028\u2029") & set(written)
    assert "日本 😀" in written


def test_results_are_appended_in_order(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, GOOD, FAILED)
    assert path.read_bytes() == line(GOOD) + line(FAILED)


def test_a_file_that_holds_something_is_not_touched_without_resume(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("precious")
    with pytest.raises(OptionError, match="already holds something; add --resume"):
        ResultFile(path, is_resumed=False)
    assert path.read_text() == "precious"


def test_an_empty_file_may_be_written_to(tmp_path):
    path = tmp_path / "results.jsonl"
    path.touch()
    append(path, GOOD)
    assert path.read_bytes() == line(GOOD)


def test_a_run_without_results_leaves_no_file_behind(tmp_path):
    append(tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()
    (tmp_path / "old.jsonl").touch()
    append(tmp_path / "old.jsonl")
    assert (tmp_path / "old.jsonl").exists()


def test_resume_knows_what_is_answered(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, GOOD, OTHER)
    assert append(path, is_resumed=True) == {"a", "b"}
    assert path.read_bytes() == line(GOOD) + line(OTHER)


def test_resume_of_a_file_that_is_not_there_starts_it(tmp_path):
    path = tmp_path / "results.jsonl"
    assert append(path, GOOD, is_resumed=True) == set()
    assert path.read_bytes() == line(GOOD)


def test_resume_takes_out_results_with_errors_so_that_they_are_tried_again(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, GOOD, FAILED, OTHER)
    path.chmod(0o640)
    assert append(path, is_resumed=True) == {"a", "b"}
    assert path.read_bytes() == line(GOOD) + line(OTHER)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize("tail", [line(OTHER)[:-1], line(OTHER)[:-1] + b"\0" * 64])
def test_resume_repairs_a_last_line_cut_anywhere(tmp_path, tail, monkeypatch):
    """kill -9 and power cuts stop a write after any byte."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # 1,000 of them take seconds
    path = tmp_path / "results.jsonl"
    for num_bytes in range(len(tail) + 1):
        path.write_bytes(line(GOOD) + tail[:num_bytes])
        is_whole = tail[:num_bytes] == line(OTHER)[:-1]
        assert append(path, FAILED, is_resumed=True) == ({"a", "b"} if is_whole else {"a"})
        assert path.read_bytes() == line(GOOD) + (line(OTHER) if is_whole else b"") + line(FAILED)


@pytest.mark.parametrize(
    ("content", "line_number"),
    [
        (b"not json\n" + line(GOOD), 1),
        (line(GOOD) + line(OTHER)[:-9] + b"\n" + line(FAILED), 2),
        (line(GOOD) + b'{"id": "a", "prompt": "a prompt file given by mistake"}\n', 2),
        (line(GOOD) + b'{"id": 7, "text": "x", "error": null}\n', 2),
        (line(GOOD) + b"my own notes, without a newline", 2),
        (b"\xff\xfe\n", 1),
    ],
)
def test_a_line_that_is_no_result_is_named_and_nothing_is_changed(tmp_path, content, line_number):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=f"line {line_number} is not a result"):
        ResultFile(path, is_resumed=True)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "missing" / "results.jsonl", tmp_path):
        with pytest.raises(OptionError, match="cannot be opened for results"):
            ResultFile(path, is_resumed=False)


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(OptionError, match="cannot be opened for results: File name too long; give --output"):
        ResultFile(tmp_path / ("x" * 300), is_resumed=False)


def test_an_error_may_name_a_file_whose_name_is_not_utf_8(tmp_path):
    failed = PromptResult(id="a", line_number=1, error="caf\udce9.txt line 1: prompt is empty")
    append(tmp_path / "results.jsonl", failed)
    assert json.loads((tmp_path / "results.jsonl").read_bytes())["error"] == failed.error


def test_an_interruption_while_the_disk_is_waited_for_keeps_the_line(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    with ResultFile(path, is_resumed=False) as file:
        file.append(GOOD)

        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            file.append(OTHER)
    assert path.read_bytes() == line(GOOD) + line(OTHER)


@contextmanager
def interrupted_at(number):
    """A KeyboardInterrupt before the line of result_file.py that is the `number`-th to run."""
    steps = itertools.count(1)

    def trace(frame, event, _):
        if frame.f_code.co_filename != result_file.__file__:
            return None
        if event == "line" and next(steps) == number:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("interfere", [Path.exists, Path.unlink], ids=["undisturbed", "removed"])
def test_interrupted_at_any_step_a_result_is_kept_whole_or_not_at_all(tmp_path, interfere):
    """One that was in the file, and not yet in the books, was lost where the file was moved away."""
    for number in itertools.count(1):
        path = tmp_path / f"{number}.jsonl"
        with ResultFile(path, is_resumed=False) as file:
            file.append(GOOD)
            try:
                with interrupted_at(number):
                    file.append(OTHER)
                    break
            except KeyboardInterrupt:
                pass
            written = path.read_bytes()
            interfere(path)
        assert written in (line(GOOD), line(GOOD) + line(OTHER))
        assert (file.kept_in or path).read_bytes() == written
        assert (file.kept_in is None) == (interfere is Path.exists)
    assert number > 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # for a file that was just opened
def test_interrupted_while_results_are_kept_beside_they_are_kept_all_the_same(tmp_path):
    for number in itertools.count(1):
        path = tmp_path / f"{number}.jsonl"
        file = ResultFile(path, is_resumed=False)
        file.append(GOOD)
        path.unlink()
        try:
            with interrupted_at(number):
                file.close()
                break
        except KeyboardInterrupt:
            file.close()
        assert file.kept_in.read_bytes() == line(GOOD)
    assert number > 20


def test_a_full_disk_is_one_sentence_and_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    with ResultFile(path, is_resumed=False) as file:
        file.append(GOOD)

        def refuse(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(
            OverstoryError, match="No space left on device; make room and go on with --resume"
        ) as caught:
            file.append(OTHER)
    assert caught.value.exit_code == 1
    assert path.read_bytes() == line(GOOD)


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/null")
def test_a_disk_that_does_not_even_take_the_line_back_is_one_sentence(tmp_path, monkeypatch):
    """The failure to cut the half line off hid what had failed, and ended in a traceback."""
    path = tmp_path / "results.jsonl"

    def refuse(_):
        raise OSError(errno.EIO, "Input/output error")

    with ResultFile(path, is_resumed=False) as file, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        patch.setattr(file, "_file", Untruncatable(file._file))
        with pytest.raises(OverstoryError, match="took no more results: Input/output error; make room"):
            file.append(GOOD)


class Untruncatable:
    """A file on a disk that fails altogether."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def truncate(self, size):
        raise OSError(errno.EIO, "Input/output error")


def test_a_device_can_take_results():
    append(Path("/dev/null"), GOOD)


KILLED_RUN = """
import sys
from pathlib import Path
from tests.support.answer_fakes import echo
from runtime.prompts.headless import PromptResult, one_by_one, run_prompts
from runtime.prompts.prompt_file import read_prompts
from runtime.prompts import result_file
from runtime.prompts.result_file import ResultFile
from runtime.config import SamplingParams

def generate(request):
    if request.id == "3":
        print("answering the third", flush=True)
        sys.stdin.read()  # until somebody kills this process
    yield from echo(request)

with ResultFile(Path(sys.argv[2]), is_resumed=False) as results:
    for event in run_prompts(one_by_one(generate), read_prompts(sys.argv[1], SamplingParams())):
        if isinstance(event, PromptResult):
            results.append(event)
"""


def test_kill_9_loses_no_result(tmp_path):
    prompts, path = tmp_path / "prompts.txt", tmp_path / "results.jsonl"
    prompts.write_text("one\ntwo\nthree\n")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(prompts), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout.readline() == b"answering the third\n"
        process.kill()
    assert [json.loads(row)["text"] for row in path.read_text().splitlines()] == ["ONE", "TWO"]
    assert append(path, is_resumed=True) == {"1", "2"}


def test_of_two_runs_on_one_file_the_second_is_refused_and_changes_nothing(tmp_path):
    """Two fresh runs wrote every id twice; a resume that repaired the file beside the first one lost its results."""
    path = tmp_path / "results.jsonl"
    with ResultFile(path, is_resumed=False) as first:
        first.append(GOOD)
        for is_resumed in (False, True):
            with pytest.raises(OptionError, match=f"is being written by another run .process {os.getpid()}.; wait"):
                ResultFile(path, is_resumed=is_resumed)
        first.append(OTHER)
    assert path.read_bytes() == line(GOOD) + line(OTHER)


def test_a_repaired_file_is_locked_as_well(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(line(GOOD) + line(FAILED))
    with ResultFile(path, is_resumed=True) as first:
        with pytest.raises(OptionError, match="another run"):
            ResultFile(path, is_resumed=True)
        first.append(OTHER)
    assert path.read_bytes() == line(GOOD) + line(OTHER)


def replaced(path):
    path.with_name("new").write_bytes(b"somebody else's\n")
    path.with_name("new").replace(path)


def removed_with_its_folder(path):
    shutil.rmtree(path.parent)


def overwritten(path):
    """As by an editor that saves in place what it read before."""
    path.write_bytes(b"x" * 10_000)


INTERFERENCES = {
    "moved": lambda path: path.rename(path.with_name("elsewhere")),
    "removed": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, 20),
    "replaced": replaced,
    "overwritten": overwritten,
    "removed with its folder": removed_with_its_folder,
}


@pytest.mark.parametrize("is_resumed", [False, True], ids=["fresh", "resumed"])
@pytest.mark.parametrize("is_last", [False, True], ids=["before a result", "at the end"])
@pytest.mark.parametrize("interfere", INTERFERENCES.values(), ids=INTERFERENCES)
def test_results_are_kept_beside_a_path_that_no_longer_has_them(tmp_path, interfere, is_last, is_resumed):
    path = tmp_path / "folder" / "results.jsonl"
    path.parent.mkdir()
    if is_resumed:
        path.write_bytes(line(GOOD))
    with ResultFile(path, is_resumed=is_resumed) as file:
        if not is_resumed:
            file.append(GOOD)
        if not is_last:
            interfere(path)
        file.append(OTHER)
        if is_last:
            interfere(path)
    assert file.kept_in == path.with_name("results.jsonl.kept")
    assert file.kept_in.read_bytes() == line(GOOD) + line(OTHER)
    if interfere is replaced:
        assert path.read_bytes() == b"somebody else's\n"


def test_what_was_kept_can_be_gone_on_with_and_is_locked_too(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultFile(path, is_resumed=False) as file:
        file.append(GOOD)
        path.unlink()
        file.append(OTHER)
        with pytest.raises(OptionError, match="another run"):
            ResultFile(file.kept_in, is_resumed=True)
    assert append(file.kept_in, is_resumed=True) == {"a", "b"}


def test_results_are_kept_where_there_is_room(tmp_path, monkeypatch):
    """Beside the path there was none: the sentence named a file that did not hold them."""
    path, elsewhere = tmp_path / "full" / "results.jsonl", tmp_path / "elsewhere"
    path.parent.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    fsync = os.fsync
    with ResultFile(path, is_resumed=False) as file:
        file.append(GOOD)
        path.unlink()

        def refuse_there(descriptor):
            if (path.parent / "results.jsonl.kept").exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse_there)
    assert file.kept_in == elsewhere / "results.jsonl.kept"
    assert file.kept_in.read_bytes() == line(GOOD)
    assert list(path.parent.iterdir()) == []


def test_what_was_kept_before_is_not_written_over(tmp_path):
    path = tmp_path / "results.jsonl"
    path.with_name("results.jsonl.kept").write_text("precious")
    with ResultFile(path, is_resumed=False) as file:
        file.append(GOOD)
        path.unlink()
    assert file.kept_in == path.with_name("results.jsonl.kept-2")
    assert path.with_name("results.jsonl.kept").read_text() == "precious"


def test_lines_that_somebody_adds_meanwhile_are_left_in_peace(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultFile(path, is_resumed=False) as file:
        file.append(GOOD)
        with path.open("ab") as other:
            other.write(b"a note\n")
        file.append(OTHER)
    assert file.kept_in is None
    assert path.read_bytes() == line(GOOD) + b"a note\n" + line(OTHER)


def test_what_a_file_answers_can_be_told_without_touching_it(tmp_path):
    path = tmp_path / "results.jsonl"
    assert not finished_ids(path, OWN_FORMAT, is_resumed=True) and not path.exists()
    append(path, GOOD, FAILED)
    with path.open("ab") as file:
        file.write(line(OTHER)[:-9])
    before = path.read_bytes()
    assert finished_ids(path, OWN_FORMAT, is_resumed=True) == {"a"}
    assert path.read_bytes() == before
    with pytest.raises(OptionError, match="already holds something; add --resume"):
        finished_ids(path, OWN_FORMAT, is_resumed=False)
    with pytest.raises(OptionError, match="cannot be opened for results"):
        finished_ids(tmp_path / "missing" / "results.jsonl", OWN_FORMAT, is_resumed=True)
