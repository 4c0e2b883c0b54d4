from pathlib import Path
from typing import Any

from offload import llama_cpp


def test_experts_are_kept_on_the_processor_layer_by_layer():
    assert "llama-server -m MODEL.gguf --n-cpu-moe 36, " in llama_cpp.for_experts(36)
    assert "llama-server -m a.gguf --n-cpu-moe 24, " in llama_cpp.for_experts(24, Path("b/a.gguf"))


def test_nonsense_is_no_number_of_layers():
    assert all("--n-cpu-moe N, " in llama_cpp.for_experts(found) for found in (None, True, -1, 1 << 60, "rm -rf"))


def test_what_stays_in_memory_gets_the_command_for_its_file():
    assert "llama-server -m 'a b.gguf' -ngl 999" in said(Path("somewhere/a b.gguf"), streams=False)
    assert "vllm serve owner/name" in said(streams=False, hub_name="owner/name")
    assert "-ngl" not in said(streams=False, is_cpu=True)


def test_what_streams_to_a_card_is_at_home_here():
    assert llama_cpp.for_model(streams=True) is None and llama_cpp.for_model(Path("a.gguf"), streams=True) is None
    assert llama_cpp.for_model(streams=True, is_cpu=True) is None


def test_a_file_of_blocks_on_a_processor_is_not():
    assert said(Path("somewhere/a b.gguf"), streams=True, is_cpu=True).endswith("llama-server -m 'a b.gguf'")


def said(file: Path | None = None, **known: Any) -> str:
    found = llama_cpp.for_model(file, **known)
    assert found is not None
    return found
