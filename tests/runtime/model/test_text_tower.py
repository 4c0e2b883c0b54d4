"""The text part of an image-text model: its classes, its configuration, and that nothing else of it is built."""

import pytest
import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from runtime.model.architecture import build_empty_model
from runtime.model.text_tower import (
    FAMILIES,
    decoder_class,
    is_composite,
    model_class,
    other_token_ids,
    text_config,
)
from tests.support.every_architecture import small_config
from tests.support.model_factory import tiny_config


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_decoder_and_head_are_built(family: str) -> None:
    config = small_config(family)
    model = build_empty_model(config, dtype=torch.float32)
    assert [name for name, _ in model.named_children()] == ["model", "lm_head"]
    assert [name for name, _ in model.model.named_children()] == ["language_model"]
    assert type(model.model.language_model) is decoder_class(config)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_names_shapes_and_ties_are_those_of_the_whole(family: str) -> None:
    config = small_config(family)
    whole_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        whole = whole_class(config)
    part = build_empty_model(small_config(family), dtype=torch.float32)
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    found = {name: tensor.shape for name, tensor in part.state_dict().items()}
    assert found.items() < shapes.items()
    assert all("language_model" not in name and name != "lm_head.weight" for name in shapes.keys() - found.keys())
    assert part.all_tied_weights_keys == whole.all_tied_weights_keys
    assert isinstance(part, whole_class) and type(part).__name__ == whole_class.__name__


def test_a_model_of_text_alone_is_its_own_text_part() -> None:
    config = tiny_config("llama")
    assert text_config(config) is config and not is_composite(config)
    assert model_class(config) is decoder_class(config)
    assert not other_token_ids(tiny_config("llama", image_token_id=5))


def test_what_is_no_image_text_model_of_a_known_kind_has_no_text_part() -> None:
    config = CONFIG_MAPPING["paligemma"]()
    assert text_config(config) is config and not is_composite(config)
    assert model_class(PreTrainedConfig()) is None


def test_a_text_part_that_writes_no_text_has_no_class() -> None:
    config = small_config("mistral3")
    config.text_config = CONFIG_MAPPING["clip_text_model"]()
    assert model_class(config) is None


def test_tokens_of_images_are_known() -> None:
    config = small_config("qwen3_vl")
    config.image_token_id, config.video_token_id = 3, 5
    assert other_token_ids(config) == {3, 5}
