"""Random models that can write JSON: every byte is a token, and some tokens are several signs of JSON."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.model_factory import save_tiny_model

MERGES = (("{", '"'), ('"', ":"), ('"', ","), ('",', '"'), ("t", "r"), ("tr", "ue"), ("u", "e"), ("Ã", "©"), ("Ġ", "Ġ"))
VOCAB_SIZE = 280
"""Some rows more than there are tokens."""


def json_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary; its last token ends an answer."""
    strings = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys("".join(pair) for pair in MERGES)]
    merges = sorted(MERGES, key=lambda pair: len("".join(pair)))
    vocabulary = {string: index for index, string in enumerate(strings)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
        clean_up_tokenization_spaces=False,
    )


def blank_tokens() -> tuple[int, ...]:
    """The tokens of blanks, which random models write on and on."""
    return tuple(json_tokenizer().convert_tokens_to_ids(["Ġ", "ĠĠ", "Ċ", "č", "ĉ"]))


def save_json_folder(folder: Path, *, seed: int = 0) -> Path:
    """A tiny model with that vocabulary."""
    tokenizer = json_tokenizer()
    save_tiny_model("llama", folder, seed=seed, vocab_size=VOCAB_SIZE, eos_token_id=tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    return folder
