"""The process speaks its frames and nothing else, does without torch, and ends with its pipe."""

import subprocess
from pathlib import Path

from profiles.child_process import child_command, child_environment
from runtime.tokenizer.messages import Encode, Load, Ready, Refused, Request, read_reply, to_frame
from tests.support.model_factory import save_tiny_tokenizer


class Content:
    """Bytes that are read like a pipe."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, num_bytes: int, /) -> bytes:
        taken, self.content = self.content[:num_bytes], self.content[num_bytes:]
        return taken


def run(*requests: Request) -> subprocess.CompletedProcess[bytes]:
    command = child_command("runtime.tokenizer.child", str(10**9))
    return subprocess.run(
        command, input=b"".join(map(to_frame, requests)), capture_output=True, env=child_environment()
    )


def test_replies_come_in_order_until_stdin_ends(tmp_path: Path) -> None:
    load = Load(1, bytes(save_tiny_tokenizer(tmp_path)))
    finished = run(*(Request(task, 9.0, []) for task in (load, Encode(1, "the cat"), Encode(2, "x"))))
    stream = Content(finished.stdout)
    kinds = [type(read_reply(stream)).__name__ for _ in range(4)]
    assert kinds == ["Ready", "Loaded", "Encoded", "Refused"]
    assert (stream.content, finished.returncode) == (b"", 0)


def test_a_program_without_its_libraries_says_so() -> None:
    broken = "import sys; sys.modules['transformers'] = None; sys.argv[1:] = ['9']\n"
    broken += "from runtime.tokenizer.child import main; main()"
    command = [child_command("x")[0], "-P", "-c", broken]
    finished = subprocess.run(command, input=b"", capture_output=True, env=child_environment())
    reply = read_reply(Content(finished.stdout))
    assert isinstance(reply, Refused) and reply.ends and "cannot start" in reply.sentence
    assert not isinstance(reply, Ready)
