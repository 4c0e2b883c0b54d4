"""Layers that lie packed in memory change no logit and no text, wherever they are, and take three quarters of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from offload.copying.copy_engine import HostSource
from offload.layer_streamer import ResidentLayer
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.packed_factory import SIZES, ask
from tests.support.session_factory import open_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name, kind, seed in (("target", "llama", 0), ("draft", "qwen2", 9)):
        save_tiny_model(kind, root / name, seed=seed, dtype=torch.bfloat16, **SIZES)
        found[name] = save_tiny_tokenizer(root / name)
    return found


WAYS: dict[str, dict[str, Any]] = {
    "all resident": {},
    "all in host memory": {"link": "10GB/s", "num_residents": 0},
    "some resident, three slots": {"link": "10GB/s", "num_residents": 2, "ring_slots": 3},
    "all on disk": {"num_residents": 0},
    "some resident, the rest on disk": {"num_residents": 2},
    "everywhere": {"link": "10GB/s", "num_residents": 1, "host_memory_bytes": 700_000, "disk_link": "5GB/s"},
    "with the keys and values": {"link": "10GB/s", "kv_cache": "host"},
    "tree": {"link": "10GB/s", "num_residents": 1, "draft": "draft", "tree": "12x5"},
    "substitute": {"link": "10GB/s", "num_residents": 1, "draft": "substitute", "tree": "8x4"},
    "shared substitute": {"draft": "substitute", "tree": "8x4", "share_layers": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_logit_is_that_of_the_layers_as_stored(way: str, folders: dict[str, Path]) -> None:
    settings = dict(WAYS[way])
    settings["draft"] = folders["draft"] if settings.get("draft") == "draft" else settings.get("draft", "none")
    found = {}
    for pack in ("off", "on"):
        with open_tiny(folders["target"], pack=pack, **settings) as opened:
            found[pack] = ask(opened)
            num_packed = sum(isinstance(layer, ResidentLayer | HostSource) for layer in opened.streamer.layers)
            assert len(opened._placed.packed) == (num_packed if pack == "on" else 0)
    assert found["on"][0] == found["off"][0]
    assert torch.equal(found["on"][1].view(torch.int32), found["off"][1].view(torch.int32))
