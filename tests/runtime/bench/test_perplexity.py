import logging
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from profiles.steps import finish
from runtime.bench import perplexity
from runtime.bench.perplexity import (
    streamed_perplexity,
    text_request,
    tokenize_text,
    transformers_perplexity,
)
from runtime.config import EngineConfig
from runtime.errors import OptionError
from runtime.prepare.preparation import prepare_model
from tests.support.every_architecture import save_architecture
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.published_factory import save_published_folder
from tests.support.session_factory import open_tiny, save_tiny_folder, save_with_tokens_beyond

TEXT = "the cat and the dog, then one other thing: 12 hats in a pan"


@pytest.fixture(autouse=True)
def short_passes(monkeypatch):
    """Several passes, and several turns of the head in each."""
    monkeypatch.setattr(perplexity, "PREFILL_CHUNK_TOKENS", 12)
    monkeypatch.setattr(perplexity, "_HEAD_ROWS", 5)


@pytest.fixture
def quiet_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `prepare_libraries` asks for before they are imported."""
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)
    monkeypatch.setattr(logging.getLogger("bitsandbytes"), "level", logging.ERROR)


def by_definition(folder: Path, token_ids: list[int]) -> float:
    """The formula, over the whole text in one forward, in double precision."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        log_probs = model(torch.tensor([token_ids])).logits[0].to(torch.float64).log_softmax(dim=-1)
    logs = [float(log_probs[i - 1, token_ids[i]]) for i in range(1, len(token_ids))]
    return math.exp(-sum(logs) / len(logs))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
def test_both_sides_give_what_the_formula_says(tmp_path: Path, kind: str) -> None:
    folder = save_tiny_folder(tmp_path / "model", kind)
    with open_tiny(folder, num_residents=1) as opened:
        token_ids = tokenize_text(opened, TEXT)
        said = list[str]()
        streamed = finish(streamed_perplexity(opened, token_ids), said.append)
        again = finish(streamed_perplexity(opened, token_ids))
        assert opened.session.engine.target.cache.num_cached == 0
    whole = finish(transformers_perplexity(folder, token_ids))
    expected = by_definition(folder, token_ids)
    assert streamed["perplexity"] == again["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert whole["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert streamed["num_tokens"] == whole["num_tokens"] == len(token_ids) - 1
    done = [*range(12, len(token_ids), 12), len(token_ids)]
    assert said == [f"streamed: {number} of {len(token_ids)} tokens" for number in done]


@pytest.mark.parametrize("num_tokens", [2, 12, 13, 24])
def test_every_token_but_the_first_counts_whatever_the_passes(tmp_path: Path, num_tokens: int) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    with open_tiny(folder) as opened:
        token_ids = tokenize_text(opened, TEXT)[:num_tokens]
        streamed = finish(streamed_perplexity(opened, token_ids))
    assert streamed["num_tokens"] == num_tokens - 1
    assert streamed["perplexity"] == pytest.approx(by_definition(folder, token_ids), rel=1e-6)


@pytest.mark.usefixtures("quiet_libraries")
@pytest.mark.parametrize("weight_format", ["nf4", "int8"])
def test_a_quantized_folder_is_measured_as_transformers_loads_it(tmp_path: Path, weight_format: str, capfd) -> None:
    source = save_tiny_model("llama", tmp_path / "model", dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    save_tiny_tokenizer(source)
    folder = tmp_path / "prepared"
    finish(prepare_model(str(source), folder, weight_format=weight_format))
    with open_tiny(source) as opened:
        token_ids = tokenize_text(opened, TEXT)
    capfd.readouterr()
    whole = finish(transformers_perplexity(folder, token_ids))
    assert capfd.readouterr() == ("", "")
    assert whole["perplexity"] == pytest.approx(by_definition(folder, token_ids), rel=0.02)  # bf16 passes differ
    assert whole["perplexity"] != pytest.approx(by_definition(source, token_ids), rel=1e-6)


def test_a_text_too_short_or_too_long_is_a_sentence(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model"), context_tokens=16) as opened:
        assert len(tokenize_text(opened, "a dog")) >= 2
        with pytest.raises(OptionError, match="the text has 1 tokens; expected 2 to 16"):
            tokenize_text(opened, "a")
        with pytest.raises(OptionError, match="expected 2 to 16, which is what the context holds"):
            tokenize_text(opened, TEXT)


def test_a_text_is_tokenised_as_it_stands() -> None:
    assert text_request(TEXT).prompt is not None
    assert text_request(TEXT).prompt == TEXT


def test_stopping_half_way_leaves_the_session_empty(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model")) as opened:
        steps = streamed_perplexity(opened, tokenize_text(opened, TEXT))
        next(steps)
        assert opened.session.engine.target.cache.num_cached > 0
        steps.close()
        assert opened.session.engine.target.cache.num_cached == 0


def test_both_sides_are_measured_one_after_the_other(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    said = list[str]()
    config = EngineConfig(target=str(folder), draft="none")
    steps = perplexity.run_perplexity(config, TEXT, source="a.txt", is_compared=True)
    record = finish(steps, said.append)
    sides = [sentence.split(":")[0] for sentence in said]
    assert sides == sorted(sides) and set(sides) == {"streamed", "transformers"}
    assert (record["target"], record["text"]) == (str(folder), "a.txt")
    assert record["relative_difference"] == record["perplexity"] / record["transformers_perplexity"] - 1


def test_an_image_text_model_is_compared_with_its_whole(tmp_path):
    """transformers has no causal language model of this architecture."""
    folder = save_tiny_tokenizer(save_architecture("muse_glimmer", tmp_path))
    steps = perplexity.run_perplexity(
        EngineConfig(target=str(folder), draft="none"), "the cat", source="a.txt", is_compared=True
    )
    assert abs(finish(steps, print)["relative_difference"]) < 1e-5


def test_a_text_with_a_token_that_has_no_row_is_a_sentence(tmp_path):
    with (
        open_tiny(save_with_tokens_beyond(tmp_path), draft="none") as opened,
        pytest.raises(OptionError, match="id 96, and the model has none beyond 95"),
    ):
        tokenize_text(opened, "see <image> here")


def test_a_package_that_transformers_lacks_for_a_format_is_a_sentence(tmp_path: Path) -> None:
    """It asks for gptqmodel, which nothing here needs."""
    folder, _ = save_published_folder(tmp_path, "awq")
    with open_tiny(folder) as opened:
        token_ids = tokenize_text(opened, TEXT)
        assert finish(streamed_perplexity(opened, token_ids))["perplexity"] > 1
    with pytest.raises(OptionError, match=r"transformers cannot load .* here: .*; leave out --beside-transformers"):
        finish(transformers_perplexity(folder, token_ids))


def test_parts_of_a_gguf_file_are_not_compared_with_what_transformers_makes_of_the_first() -> None:
    """It left all but the first part random, and a perplexity of 2e11 stood beside ours."""
    config = EngineConfig(target="m-00001-of-00003.gguf", draft="none")
    with pytest.raises(OptionError, match=r"does not read GGUF files in parts, and m-00001-of-00003\.gguf is one of 3"):
        finish(perplexity.run_perplexity(config, TEXT, source="a.txt", is_compared=True))
