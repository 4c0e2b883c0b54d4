import os
import socket
import sys

import pytest

from runtime.errors import OptionError
from runtime.prompts.ray_cluster import open_cluster


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    before = dict(os.environ)
    with pytest.raises(OptionError) as refused, open_cluster("local"):
        pass
    assert dict(os.environ) == before  # else a later cluster would ask for this one's token
    assert str(refused.value) == "--ray needs Ray; install it with: pip install 'overstory[ray]'"


def test_rays_client_is_refused_before_anything_is_started():
    with (
        pytest.raises(OptionError, match="run this on a machine of the cluster"),
        open_cluster("ray://192.0.2.1:10001"),
    ):
        pass


def test_where_nothing_listens_is_told_at_once():
    """Ray itself asks for a quarter of an hour."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "127.0.0.1:ray", "127.0.0.1:9999999"):
        with pytest.raises(OptionError, match=r"no cluster is there .* ray start --head"), open_cluster(address):
            pass
