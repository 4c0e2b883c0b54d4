import dataclasses
import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from runtime.config import EngineConfig, SamplingParams
from runtime.errors import OptionError
from tui.options import AnswerOptions, DraftOptions, EngineOptions, ResultOptions, with_option_groups


def test_the_commands_defaults_are_those_of_the_engine_and_the_answers():
    """Two tables of defaults would drift apart."""
    assert EngineOptions().to_config(DraftOptions()) == EngineConfig()
    assert AnswerOptions().to_params() == SamplingParams()


def test_every_engine_choice_can_be_made_on_the_command_line():
    engine = EngineOptions(
        target="t",
        context=100,
        compute_dtype="float32",
        device_memory="2.2GB",
        host_memory="1GB",
        device="cuda:0",
        emulate_link="25GB/s",
        emulate_disk="3GB/s",
        ring_slots=3,
        io="buffered",
        reader_threads=2,
    )
    drafting = DraftOptions(draft="d", tree="64x10", draft_format="stored", share_layers=True)
    config = AnswerOptions().applied_to(engine.to_config(drafting))
    default = EngineConfig()
    for field in dataclasses.fields(EngineConfig):
        assert getattr(config, field.name) != getattr(default, field.name), field.name
    assert (config.device_memory_bytes, config.host_memory_bytes) == (2_200_000_000, 1_000_000_000)


def test_without_draft_options_streaming_is_plain():
    assert EngineOptions().to_config().is_plain


def test_every_sampling_choice_can_be_made_on_the_command_line():
    params = AnswerOptions(
        max_new_tokens=1,
        temperature=0.5,
        top_p=0.5,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        ban_token=[4, 5],
        force_token=[7, 6],
        seed=5,
        verification="coupled",
        stop=["a", "b"],
    ).to_params()
    assert (params.banned_tokens, params.forced_tokens) == ((4, 5), (7, 6))
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.2, 0.3)
    default = SamplingParams()
    for field in dataclasses.fields(SamplingParams):
        assert getattr(params, field.name) != getattr(default, field.name), field.name


def test_answers_look_up_unless_they_are_told_not_to():
    assert AnswerOptions().applied_to(EngineConfig()).lookup == "on"
    assert AnswerOptions(lookup="off").applied_to(EngineConfig()) == EngineConfig()
    with pytest.raises(OptionError, match="lookup is 'maybe'; it must be one of on, off"):
        AnswerOptions(lookup="maybe").applied_to(EngineConfig())


def test_a_memory_budget_that_is_none_names_its_option():
    with pytest.raises(OptionError, match="--host-memory"):
        EngineOptions(host_memory="much").to_config()


def test_resume_needs_a_file():
    with pytest.raises(OptionError, match="--resume needs the file"):
        ResultOptions(resume=True)


@dataclass(frozen=True, slots=True)
class Group:
    size: Annotated[int, typer.Option(help="Size.")] = 3
    name: Annotated[str, typer.Option()] = "x"


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
