import dataclasses
import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer

from runtime.config import EngineConfig, Option, SamplingParams
from runtime.errors import OptionError
from tui.options import AnsweringConfig, BatchConfig, ComparingConfig, DraftingConfig, PlainConfig, with_option_groups


def made(kind: Any, *arguments: str) -> Any:
    """What a command gets that takes a `kind`."""
    found = []

    @with_option_groups
    def command(options: kind) -> int:
        found.append(options)
        return 0

    app = typer.Typer()
    app.command()(command)
    app(list(arguments), standalone_mode=False)
    return found[0]


def test_the_commands_defaults_are_those_of_the_engine_and_the_answers():
    """Two tables of defaults would drift apart."""
    assert made(DraftingConfig) == EngineConfig(draft="auto")
    assert made(SamplingParams) == SamplingParams()


ENGINE_CHOICES = {
    "--batch": "7",
    "--target": "t",
    "--context": "100",
    "--compute-dtype": "float32",
    "--device-memory": "2.2GB",
    "--host-memory": "1GB",
    "--device": "cuda:0",
    "--draft-device": "cuda:1",
    "--emulate-link": "25GB/s",
    "--emulate-disk": "3GB/s",
    "--ring-slots": "3",
    "--io": "buffered",
    "--kv-cache": "host",
    "--kv-format": "int8",
    "--pack": "on",
    "--reader-threads": "2",
    "--draft": "d",
    "--tree": "64x10",
    "--draft-format": "stored",
    "--lookup": "on",
    "--generation": "auto",
    "--prefix-cache": "20GB",
}


def typed(choices: dict[str, str]) -> list[str]:
    return [word for pair in choices.items() for word in pair]


def test_every_engine_choice_can_be_made_on_the_command_line():
    config = made(BatchConfig, *typed(ENGINE_CHOICES), "--share-layers")
    default = EngineConfig()
    for field in dataclasses.fields(EngineConfig):
        assert getattr(config, field.name) != getattr(default, field.name), field.name
    assert (config.device_memory_bytes, config.host_memory_bytes) == (2_200_000_000, 1_000_000_000)


def test_how_many_prompts_share_a_pass_is_a_number_or_chosen():
    assert made(BatchConfig).num_texts is None
    assert made(BatchConfig, "--batch", "auto").num_texts is None
    assert made(AnsweringConfig).num_texts == 1
    for wrong in ("0", "-1", "1025", "many", "1.5", "9" * 30):
        with pytest.raises(OptionError, match="from 1 to 1024 prompts"):
            made(BatchConfig, "--batch", wrong)


def test_without_draft_options_streaming_is_plain():
    assert made(PlainConfig) == EngineConfig(draft="none")
    for hidden in ("--draft", "--tree", "--lookup", "--generation", "--prefix-cache"):
        with pytest.raises(Exception, match="No such option"):
            made(PlainConfig, hidden, "none")


def test_every_sampling_choice_can_be_made_on_the_command_line():
    choices = {
        "--max-new-tokens": "1",
        "--temperature": "0.5",
        "--top-p": "0.5",
        "--top-k": "5",
        "--min-p": "0.1",
        "--repetition-penalty": "1.1",
        "--presence-penalty": "0.2",
        "--frequency-penalty": "0.3",
        "--seed": "5",
        "--verification": "coupled",
        "--think": "200",
    }
    repeated = ["--ban-token", "4", "--ban-token", "5", "--force-token", "7", "--force-token", "6", "--stop", "a"]
    params = made(SamplingParams, *typed(choices), *repeated)
    assert (params.banned_tokens, params.forced_tokens) == ((4, 5), (7, 6))
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.2, 0.3)
    default = SamplingParams()
    for field in dataclasses.fields(SamplingParams):
        assert getattr(params, field.name) != getattr(default, field.name), field.name


def test_commands_leave_the_draft_open() -> None:
    assert made(AnsweringConfig).draft == made(ComparingConfig).draft == made(DraftingConfig).draft == "auto"


def test_answers_look_up_unless_they_are_told_not_to():
    assert made(AnsweringConfig).lookup == "on"
    plain = ("--lookup", "off", "--generation", "plain", "--draft", "substitute", "--prefix-cache", "off")
    assert made(AnsweringConfig, *plain) == EngineConfig()
    with pytest.raises(OptionError, match="lookup is 'maybe'; it must be one of on, off"):
        made(AnsweringConfig, "--lookup", "maybe")


def test_texts_are_kept_for_the_next_start_by_commands_that_answer_and_not_by_those_that_measure():
    assert made(AnsweringConfig).prefix_cache == made(BatchConfig).prefix_cache == "auto"
    for kind in (ComparingConfig, DraftingConfig, PlainConfig):
        assert made(kind).prefix_cache == "off"
    with pytest.raises(OptionError, match="--prefix-cache is 'much'; it must be auto, off, or a size as in 20GB"):
        made(AnsweringConfig, "--prefix-cache", "much")


def test_a_memory_budget_that_is_none_names_its_option():
    with pytest.raises(OptionError, match="--host-memory"):
        made(PlainConfig, "--host-memory", "much")


@dataclass(frozen=True, slots=True)
class Group:
    size: Annotated[int, Option("Size.", "Sizes")] = 3
    name: Annotated[str, Option("Name.", "Names")] = "x"


def test_a_group_becomes_one_parameter_per_field():
    @with_option_groups
    def command(path: str, group: Group, *, loud: bool = False) -> int:
        assert (path, group, loud) == ("p", Group(size=5), True)
        return 7

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["path", "size", "name", "loud"]
    assert parameters["size"].default == 3
    assert parameters["size"].annotation.__metadata__[0].help == "Size."
    assert command(path="p", size=5, name="x", loud=True) == 7


def test_the_models_own_settings_hold_in_answers_and_in_comparisons_only_if_asked():
    assert made(AnsweringConfig).generation == "auto"
    assert made(ComparingConfig) == EngineConfig(draft="auto", lookup="on")
    assert made(ComparingConfig, "--generation", "auto").generation == "auto"
    with pytest.raises(OptionError, match="generation is 'vllm'; it must be one of auto, plain"):
        made(AnsweringConfig, "--generation", "vllm")
    with pytest.raises(Exception, match="No such option"):
        made(DraftingConfig, "--generation", "auto")
