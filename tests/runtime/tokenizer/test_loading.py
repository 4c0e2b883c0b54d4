"""A tokenizer's files are read within the border of their folder; what is wrong with them is one sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offload.errors import CheckpointError
from runtime.tokenizer.loading import load_tokenizer
from tests.support.model_factory import save_tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_tokenizer(tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    return message


def change(folder: Path, name: str = "tokenizer_config.json", **settings: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **settings}))


def test_a_saved_tokenizer_is_loaded_with_its_template_and_end_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>hi</s><|assistant|>"
    assert tokenizer.decode(tokenizer("the cat.")["input_ids"]) == "the cat."
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"model": {"type": "BPE"}}', None])
def test_a_damaged_or_missing_tokenizer_is_one_sentence(folder: Path, content: bytes | None) -> None:
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    assert f"the tokenizer in {folder} cannot be loaded" in refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/w=="}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?"}, "behavior": "Isolated", "invert": False}},
        {"model": {"type": "Unigram", "unk_id": 5, "vocab": []}},
        {"added_tokens": [{"id": -1, "content": "x"}]},
    ],
)
def test_what_breaks_the_library_below_is_one_sentence(folder: Path, settings: dict[str, Any]) -> None:
    """A panic of Rust is no Exception, and ended in a traceback."""
    change(folder, "tokenizer.json", **settings)
    assert "cannot be loaded" in refusal(folder)


def test_code_of_the_checkpoint_is_never_run(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('code of the checkpoint was run')")
    change(folder, auto_map={"AutoTokenizer": [None, "mine.Mine"]}, tokenizer_class="Mine")
    assert "cannot be loaded" in refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]},
        {"fast_tokenizer_files": ["tokenizer.json", "/etc/tokenizer.4.0.0.json"]},
        {"vocab_file": "../vocab.json"},
        {"vocab_file": "/etc/passwd", "merges_file": "merges.txt"},
        {"merges_file": "a/../../merges.txt"},
        {"merges_file": "..\\merges.txt"},
        {"gguf_file": "../model.gguf"},
        {"vocab": "../vocab.json"},
        {"merges": "/etc/merges.txt"},
        {"init_inputs": ["../vocab.json"]},
        {"tokenizer_file": "../tokenizer.json"},
        {"cache_dir": "/etc"},
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_names_that_lead_out_of_the_folder_are_refused(folder: Path, name: str, settings: dict[str, Any]) -> None:
    change(folder, name, **settings)
    message = refusal(folder)
    assert name in message and "expected the name of a file in its folder" in message


def test_traces_of_the_authors_disk_that_nobody_follows_are_no_fault(folder: Path) -> None:
    traces = {"tokenizer_file": "/root/x/tokenizer.json", "special_tokens_map_file": "/content/y.json"}
    change(folder, **traces, name_or_path="/home/somebody/model", vocab_file=None, init_inputs=[])
    assert len(load_tokenizer(folder)) == 96


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to("../tokenizer.json")
    assert "leads out of the model folder" in refusal(folder)


CLASSES = """
import sys
from runtime.tokenizer.child import hide_torch
if sys.argv[1] == "without":
    hide_torch()
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
for name in CONFIG_MAPPING_NAMES:
    found = TOKENIZER_MAPPING.get(CONFIG_MAPPING[name], None)
    print(name, CONFIG_MAPPING[name].__name__, getattr(found, "__name__", found))
if sys.argv[1] == "without":
    assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_transformers_chooses_the_same_tokenizers_without_torch() -> None:
    commands = ([sys.executable, "-W", "ignore", "-c", CLASSES, mode] for mode in ("with", "without"))
    with_torch, without = (subprocess.run(one, capture_output=True, check=True).stdout for one in commands)
    assert with_torch == without and with_torch.count(b"\n") > 300
