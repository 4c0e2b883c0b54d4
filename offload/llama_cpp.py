"""What to say where llama.cpp would serve better, with the command for it: a person is helped, whoever helps."""

from pathlib import Path


def for_experts(num_layers: object = None, file: Path | None = None) -> str:
    """Return why a mixture of experts is not streamed, and the command that runs one of so many layers."""
    layers = num_layers if type(num_layers) is int and 0 < num_layers < 1000 else "N"
    return (
        "of which a tree of tokens needs nearly all in every pass; llama.cpp leaves them to the processor and is "
        f"faster: llama-server -m {_shown(file)} --n-cpu-moe {layers}, with fewer layers there while the card has room"
    )


def for_resident(file: Path | None = None, *, is_cpu: bool = False, hub_name: str | None = None) -> str:
    """Return that others are at least as fast where nothing streams, with the command, of a GGUF file if it is one."""
    command = f"where nothing streams llama.cpp is at least as fast: llama-server -m {_shown(file)}"
    if is_cpu:
        return command
    served = f", or vLLM: vllm serve {hub_name or 'MODEL'}" if file is None else ""
    return f"{command} -ngl 999{served}"


def _shown(file: Path | None) -> str:
    if file is None:
        return "MODEL.gguf"
    return f"'{file.name}'" if " " in file.name else file.name
