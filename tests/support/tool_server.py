"""A small server of tools over stdio, for tests: `python tool_server.py [FOLDER]`; it notes its end in FOLDER."""

import os
import sys
import time
from pathlib import Path

from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("tests")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def read(path: str) -> str:
    """Read a file."""
    return {"escapes": "\x1b[2Jgone\r\n\u202eright", "nothing": "", "long": "x" * 30_000}.get(
        path, f"the text of {path}"
    )


@server.tool()
def draw() -> list[str | Image]:
    """Draw a picture."""
    return ["here it is", Image(data=b"\x89PNG" + b"\0" * 96, format="png")]


@server.tool()
def fail(reason: str) -> str:
    """Fail."""
    raise ValueError(reason)


@server.tool()
def wait() -> str:
    """Wait for good."""
    time.sleep(3600)
    return ""


@server.tool()
def die() -> str:
    """End in the middle."""
    sys.stderr.write("goodbye\n")
    sys.stderr.flush()
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1], f"{os.getpid()}").touch()
    server.run()
