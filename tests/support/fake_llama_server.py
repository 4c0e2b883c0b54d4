"""A stand-in for llama.cpp's server: the same options and endpoints, and answers that are written down beforehand.

Its "models" are small JSON files. The target's says what it answers, or how it fails:

    text            list of the pieces that it answers with, one token each
    seconds         what each piece but the first takes
    accepted        drafts that were accepted, where it has a draft
    fails           loading, answering (its process ends by a signal), refusing, counting, halfway, babbling
    record          a file to which it appends its command line
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

NEW_HELP = "--model FILE --host H --port N -c, --ctx-size N --parallel N --threads N --threads-batch N --cache-ram N "
NEW_HELP += "--model-draft FILE --spec-draft-n-max N --draft-max N (removed) --spec-type none,draft-simple"
OLD_HELP = "--model FILE --host H --port N --ctx-size N --parallel N --threads N --threads-batch N --model-draft FILE "
OLD_HELP += "--draft-max N --ctx-size-draft N"


def save_fake_server(folder: Path, *, help_text: str = NEW_HELP) -> Path:
    """Write an executable that is such a server, and return its path."""
    program = folder / "llama-server"
    program.write_text(f'#!/bin/sh\nFAKE_HELP="{help_text}" exec "{sys.executable}" -S "{__file__}" "$@"\n')
    program.chmod(0o755)
    return program


def save_fake_model(path: Path, **says: Any) -> Path:
    """Write a "model" for it, and return its path."""
    path.write_text(json.dumps({"text": ["a ", "b ", "c"], "seconds": 0.01, **says}))
    return path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: ClassVar[dict[str, Any]] = {}
    has_draft = False

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._reply(200, b'{"status":"ok"}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fails = self.model.get("fails")
        if fails == "answering":
            os.kill(os.getpid(), signal.SIGKILL)
        if fails == "refusing":
            self._reply(400, b'{"error": "the prompt holds a token that is none"}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = self.model["text"][: asked["n_predict"]]
        for number, piece in enumerate(pieces):
            time.sleep(self.model["seconds"] if number else 0)
            self._event(b"{," if fails == "babbling" else json.dumps({"content": piece, "stop": False}).encode())
            if fails == "halfway":
                os._exit(3)
        timings = {"predicted_per_token_ms": 1e3 * self.model["seconds"]}
        if self.has_draft:
            timings["draft_n_accepted"] = self.model.get("accepted", 1)
        told = {"tokens_predicted": len(pieces), "tokens_evaluated": len(asked["prompt"]), "timings": timings}
        if fails == "counting":
            told["tokens_evaluated"] += 1
        self._event(json.dumps({"content": "", "stop": True, **told}).encode())
        self.wfile.write(b"0\r\n\r\n")

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _event(self, record: bytes) -> None:
        line = b"data: " + record + b"\n\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()


class _Server(HTTPServer):
    """Says nothing of a client that is gone, as llama-server does."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


def main(arguments: list[str]) -> None:
    """Be the server."""
    if arguments == ["--version"]:
        print("version: 1 (fake)", file=sys.stderr)
        return
    if arguments == ["--help"]:
        print(os.environ["FAKE_HELP"])
        return
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    _Handler.model = json.loads(Path(given["--model"]).read_text())
    _Handler.has_draft = "--model-draft" in given
    if record := _Handler.model.get("record"):
        with Path(record).open("a") as file:
            file.write(json.dumps(arguments) + "\n")
    if _Handler.model.get("fails") == "loading":
        sys.exit("error: there is no room for the model")
    with _Server((given["--host"], int(given["--port"])), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
