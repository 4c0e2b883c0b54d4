"""Random models whose template knows tools and thinking; what such a model would say is forced, token by token."""

import json
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from runtime.config import SamplingParams
from tests.support.json_models import VOCAB_SIZE, json_tokenizer
from tests.support.model_factory import save_tiny_model

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = """{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}
{%- for m in messages %}<{{ m.role }}>{{ m.content }}
{%- for call in m.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% if enable_thinking %}<think>
{% endif %}{% endif %}{{ '</think>' if false }}"""
ALTERNATING = """{% set ns = namespace(expected='user') %}
{%- for m in messages %}
{%- if m.role in ('user', 'assistant') and not m.tool_calls %}
{%- if m.role != ns.expected %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if not m.content %}{{ raise_exception('an assistant must say something') }}{% endif %}
{%- set ns.expected = 'assistant' if m.role == 'user' else 'user' %}{% endif %}
{%- for call in m.tool_calls %}{{ call.function.name }}{% endfor %}<{{ m.content }}>{% endfor %}"""
"""With the rules of Mistral's, for which calls and their results are no turns."""
TOOLS = [
    {
        "name": "look",
        "description": "",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
    {"name": "go", "description": "", "parameters": {"type": "object", "properties": {}}},
]
OPENAI_TOOLS = [{"type": "function", "function": tool} for tool in TOOLS]
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "cat"}}\n</tool_call>'


def calling_tokenizer(*, are_special: bool = True) -> PreTrainedTokenizerFast:
    """Bytes, and the marks as tokens of their own."""
    tokenizer = json_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=are_special) for mark in MARKS])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_calling_folder(folder: Path, *, are_special: bool = True) -> Path:
    """A tiny model with that vocabulary."""
    tokenizer = calling_tokenizer(are_special=are_special)
    assert len(tokenizer) <= VOCAB_SIZE
    save_tiny_model(
        "llama", folder, vocab_size=VOCAB_SIZE, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=4096
    )
    tokenizer.save_pretrained(folder)
    return folder


def saying(text: str, **params: object) -> SamplingParams:
    """What makes such a model say a text and end."""
    tokenizer = calling_tokenizer()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return SamplingParams(**{"max_new_tokens": 400, "forced_tokens": tuple(ids), **params})


def tools_json() -> str:
    """The tools as a request has them."""
    return json.dumps(OPENAI_TOOLS)
