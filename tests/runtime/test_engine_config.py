import pytest

from runtime.config import MAX_GRAFTED_NODES, EngineConfig, parse_memory, parse_prefix_cache, parse_tree
from runtime.errors import OptionError


def test_defaults_are_the_demo_model_with_a_substitute_draft():
    config = EngineConfig()
    assert config.target is None
    assert not config.is_plain
    assert config.tree_shape is None


def test_draft_none_is_plain_streaming():
    assert EngineConfig(draft="none").is_plain


@pytest.mark.parametrize(
    ("text", "kind", "shape"),
    [
        ("64x10", "static", (64, 10)),
        ("2x2", "static", (2, 2)),
        ("4096x2", "static", (4096, 2)),
        ("auto", "either", None),
        ("static", "static", None),
        ("dynamic", "dynamic", None),
        ("dynamic:64x10", "dynamic", (64, 10)),
    ],
)
def test_tree_text_is_a_kind_or_nodes_by_levels(text, kind, shape):
    assert parse_tree(text) == (kind, shape)
    assert EngineConfig(tree=text).tree_kind == kind
    assert EngineConfig(tree=text).tree_shape == shape


@pytest.mark.parametrize(
    "text",
    [
        "",
        "64",
        "64x",
        "x10",
        "64X10",
        "64x10x2",
        "-4x2",
        "4x5",
        "1x1",
        "64x1",
        "4097x2",
        "6.4x2",
        "٣x٢",
        " 4x2",
        "dynamic:",
        "dynamic:1x1",
        "static:64x10",
        "9" * 50 + "x2",
    ],
)
def test_a_tree_that_cannot_be_is_refused_by_name(text):
    with pytest.raises(OptionError, match="tree is"):
        EngineConfig(tree=text)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ring_slots": 1}, "ring_slots is 1; it must be 2 or more"),
        ({"device_memory_bytes": -1}, "device_memory_bytes is -1"),
        ({"host_memory_bytes": -1}, "host_memory_bytes is -1"),
        ({"context_tokens": 1}, "context_tokens is 1"),
        ({"num_reader_threads": 0}, "num_reader_threads is 0"),
        ({"num_reader_threads": 1_000_000}, "num_reader_threads is 1000000; it must be 256 or less"),
        ({"compute_dtype": "int8"}, "compute_dtype is 'int8'; it must be one of auto, float32, bfloat16, float16"),
        ({"device": " "}, "device is empty"),
        ({"link": "1GB/s", "disk_link": "fast"}, "disk_link: "),
        ({"disk_link": "1GB/s"}, "disk_link has no link in front of it"),
        ({"io": "mmap"}, "io is 'mmap'"),
        ({"lookup": "maybe"}, "lookup is 'maybe'; it must be one of on, off"),
        ({"target": " "}, "target is empty"),
        ({"draft": ""}, "draft is empty"),
        ({"link": "25 parsecs"}, "link: "),
    ],
)
def test_a_value_outside_its_range_is_named(changes, named):
    with pytest.raises(OptionError, match=named):
        EngineConfig(**changes)


def test_only_trees_of_drafts_get_looked_up_nodes():
    assert EngineConfig().num_graft_nodes == 0
    assert EngineConfig(lookup="on").num_graft_nodes == MAX_GRAFTED_NODES
    assert EngineConfig(lookup="on", draft="none").num_graft_nodes == 0


def test_host_memory_may_be_nothing():
    assert EngineConfig(host_memory_bytes=0).host_memory_bytes == 0


def test_a_link_is_checked_before_anything_is_opened():
    assert EngineConfig(link="25GB/s,10us").link == "25GB/s,10us"


def test_memory_is_read_as_people_write_it():
    assert parse_memory("2.2GB", "--device-memory") == 2_200_000_000


def test_memory_that_is_none_names_the_option():
    with pytest.raises(OptionError, match=r"--device-memory: .*lots"):
        parse_memory("lots", "--device-memory")


def test_a_prefix_cache_is_off_chosen_by_size_or_left_to_the_program():
    assert [parse_prefix_cache(text) for text in ("off", "auto", "20GB", "0GB")] == [0, None, 20 * 10**9, 0]
    assert EngineConfig().prefix_cache == "off"
    for wrong in ("", "on", "-1GB", "min"):
        with pytest.raises(OptionError, match=r"prefix_cache is .*; it must be auto, off, or a size as in 20GB"):
            EngineConfig(prefix_cache=wrong)
