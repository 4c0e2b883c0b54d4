"""Layers that lie packed in memory change no logit and no text, wherever they are, and take three quarters of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from offload.copying.copy_engine import HostSource
from offload.layer_streamer import ResidentLayer
from runtime.engine.loading import OpenSession
from runtime.model.streamed_model import chain_input
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.session_factory import answer, open_tiny, request

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
ASKED = [request(max_new_tokens=12), request("a dog", max_new_tokens=12, temperature=0.9, seed=5)]


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


def ask(opened: OpenSession) -> tuple[list[list[int]], torch.Tensor]:
    texts = [answer(opened, asked)[1] for asked in ASKED]
    target = opened.session.engine.target
    target.cache.truncate(0)
    return texts, target.logits(target.run_pass(chain_input([3, 5, 8, 13, 21], num_cached=0)))


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
