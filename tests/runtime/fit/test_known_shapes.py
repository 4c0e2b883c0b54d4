import pytest

from runtime.fit.known_shapes import KNOWN_SHAPES, find_shape, nearest_names, shape_names, unknown_name, usual_draft


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Llama-3-70B", 70_553_706_496),
        ("Llama-3-8B", 8_030_261_248),
        ("Llama-3.2-3B", 3_212_749_824),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Llama-2-70B", 68_976_648_192),
        ("Llama-2-7B", 6_738_415_616),
        ("Qwen2.5-72B", 72_706_203_648),
        ("Qwen2.5-32B", 32_763_876_352),
        ("Qwen2.5-14B", 14_770_033_664),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-3B", 3_085_938_688),
        ("Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen2.5-0.5B", 494_032_768),
    ],
)
def test_a_shape_has_the_published_number_of_parameters(name, num_parameters):
    """From the safetensors metadata that the hub shows: a wrong size anywhere would change it."""
    shape = find_shape(name)
    assert shape is not None and shape.num_parameters == num_parameters


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("llama-3-8b", "Llama-3-8B"),
        ("LLAMA 3 8B", "Llama-3-8B"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "Llama-3-70B"),
        ("llama_3.1_70b_instruct", "Llama-3.1-70B"),
        ("meta-llama/Llama-2-70b-chat-hf", "Llama-2-70B"),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen2.5-1.5B"),
        ("qwen2.5:0.5b", "Qwen2.5-0.5B"),
    ],
)
def test_a_name_is_found_however_it_is_spelt(typed, name):
    found = find_shape(typed)
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    "typed", ["", "llama", "unsloth/llama-3-70b-bnb-4bit", "Qwen2.5-72B-Instruct-AWQ", "llama-3-7b"]
)
def test_another_model_is_not_taken_for_a_known_one(typed):
    assert find_shape(typed) is None


def test_names_are_unique_in_every_spelling():
    assert all(find_shape(name.upper()) is shape for name, shape in zip(shape_names(), KNOWN_SHAPES, strict=True))


def test_a_draft_is_of_the_same_family_and_smaller():
    pairs = [(shape, usual_draft(shape)) for shape in KNOWN_SHAPES]
    assert sum(draft is not None for _, draft in pairs) == 11
    for shape, draft in pairs:
        if draft is not None:
            assert draft.num_parameters < shape.num_parameters / 2
            assert draft.name[:5] == shape.name[:5]


def test_a_slip_gets_the_near_names_and_nonsense_gets_all():
    assert nearest_names("lama-3-70b", shape_names())[0] == "llama-3-70b"
    assert "did you mean qwen2.5-72b" in str(unknown_name("the model", "quen2.5-72b", shape_names()))
    message = str(unknown_name("the model", "zzz\x1b[2J", shape_names()))
    assert "known are llama-3-70b" in message and "\x1b" not in message
