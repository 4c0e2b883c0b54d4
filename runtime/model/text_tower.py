"""The text part of a composite checkpoint, an image-text model of which only decoder and head are built.

Its classes are transformers' own under their own names, and so are the names of its tensors, what is tied, and the
arithmetic of the head; the towers for images and sound, and what projects their output, are never made.
"""

from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
)

FAMILIES = frozenset(
    ("exaone4_5", "gemma3", "gemma4", "mistral3", "muse_glimmer", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl")
)
"""Model types whose forward over text is that of the decoder and the head alone: tests/system/test_text_towers.py."""
_OTHER_TOKEN_KEYS = ("image_token_id", "video_token_id", "audio_token_id", "image_token_index")


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the decoder that answers text: a part of that of a composite model, else itself."""
    return config.get_text_config(decoder=True) if config.model_type in FAMILIES else config


def is_composite(config: PreTrainedConfig) -> bool:
    """Return whether this is a composite model of which the text part is run."""
    return config.model_type in FAMILIES


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class that is built for a configuration; None where transformers has none that writes text."""
    if not is_composite(config):
        known: type[PreTrainedModel] | None = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        return known
    text = text_config(config)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING and text.model_type != f"{config.model_type}_text":
        return None
    return _without_towers(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], MODEL_MAPPING[type(config)])


def decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class whose attention and masks decide: the decoder's own of a composite model."""
    return MODEL_MAPPING.get(type(text_config(config)), None) if is_composite(config) else model_class(config)


def other_token_ids(config: PreTrainedConfig) -> frozenset[int]:
    """Return the ids of the tokens in whose place a composite model wants an image, a video or sound."""
    found = (getattr(config, key, None) for key in _OTHER_TOKEN_KEYS if is_composite(config))
    return frozenset(token_id for token_id in found if type(token_id) is int)


def _without_towers(whole: type[PreTrainedModel], base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the class of an image-text model that makes nothing but its decoder and its head."""

    def build_base(self: Any, config: PreTrainedConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.language_model = AutoModel.from_config(text_config(config))
        self.post_init()

    def build_whole(self: Any, config: PreTrainedConfig) -> None:
        PreTrainedModel.__init__(self, config)
        text = text_config(config)
        self.model = _same_class(base, build_base)(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    return _same_class(whole, build_whole)


def _same_class(known: type[PreTrainedModel], build: Any) -> type[PreTrainedModel]:
    """Return a class that is built otherwise; renamings and checks go by its name and module."""
    return type(known.__name__, (known,), {"__init__": build, "__module__": known.__module__})
