from pathlib import Path

from offload import llama_cpp


def test_experts_are_kept_on_the_processor_layer_by_layer():
    assert "llama-server -m MODEL.gguf --n-cpu-moe 36, " in llama_cpp.for_experts(36)
    assert "llama-server -m a.gguf --n-cpu-moe 24, " in llama_cpp.for_experts(24, Path("b/a.gguf"))


def test_nonsense_is_no_number_of_layers():
    assert all("--n-cpu-moe N, " in llama_cpp.for_experts(found) for found in (None, True, -1, 1 << 60, "rm -rf"))


def test_what_stays_in_memory_gets_the_command_for_its_file():
    assert "llama-server -m 'a b.gguf' -ngl 999" in llama_cpp.for_resident(Path("somewhere/a b.gguf"))
    assert "vllm serve owner/name" in llama_cpp.for_resident(hub_name="owner/name")
    assert "-ngl" not in llama_cpp.for_resident(is_cpu=True)
