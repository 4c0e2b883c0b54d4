"""What to say where llama.cpp would serve better, with the command for it: a person is helped, whoever helps."""

from pathlib import Path


def for_experts(num_layers: object = None, file: Path | None = None) -> str:
    """Return why a mixture of experts is not streamed, and the command that runs one of so many layers."""
    layers = num_layers if type(num_layers) is int and 0 < num_layers < 1000 else "N"
    return (
        "of which a tree of tokens needs nearly all in every pass; llama.cpp leaves them to the processor and is "
        f"faster: llama-server -m {_shown(file)} --n-cpu-moe {layers}, with fewer layers there while the card has room"
    )


def for_model(
    file: Path | None = None, *, streams: bool, is_cpu: bool = False, hub_name: str | None = None
) -> str | None:
    """Return that others are as fast where nothing streams, or faster with a GGUF `file` on a processor.

    With the command; None where this runtime is the better choice.
    """
    command = f"llama-server -m {_shown(file)}"
    if file is not None and is_cpu:
        return (
            "on a processor llama.cpp is faster with this file: it multiplies the blocks as they are, which here are "
            f"widened in every pass: {command}"
        )
    if streams:
        return None
    if not is_cpu:
        command += " -ngl 999"
        command += f", or vLLM: vllm serve {hub_name or 'MODEL'}" if file is None else ""
    return f"where nothing streams llama.cpp is at least as fast: {command}"


def _shown(file: Path | None) -> str:
    if file is None:
        return "MODEL.gguf"
    return f"'{file.name}'" if " " in file.name else file.name
