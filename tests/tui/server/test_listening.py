"""Where a server listens: on loopback, on a port that is free."""

import socket

import pytest

from runtime.errors import OptionError
from tui.server.listening import listen


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "localhost", "example.com", ""])
def test_no_other_address_is_listened_on(host):
    with pytest.raises(OptionError, match=r"it must be 127\.0\.0\.1 or ::1"):
        listen(host, 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_a_port(port):
    with pytest.raises(OptionError, match="it must be from 0"):
        listen("127.0.0.1", port)


def test_a_port_that_is_taken_is_named():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port} of 127.0.0.1 is in use already; give another --port"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", port), socket.create_connection(("127.0.0.1", port)):
        pass
