from dataclasses import replace

from runtime.fit.shapes import ModelShape
from tests.support.plan_fakes import LLAMA_3_8B, LLAMA_3_70B

TINY = ModelShape(
    name="tiny",
    source="made up",
    num_layers=4,
    hidden_size=32,
    inner_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=96,
    item_bytes=4,
)


def test_published_bytes_are_two_a_parameter():
    total = LLAMA_3_70B.formats[0].total_bytes + LLAMA_3_70B.others_bytes
    assert total == 2 * LLAMA_3_70B.num_parameters  # a layer's bytes are whole pages already


def test_int8_and_nf4_of_the_large_model_from_the_definition():
    matrices = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192
    rows = 8192 + 1024 + 1024 + 8192 + 28672 + 28672 + 8192
    norms = 2 * 8192 * 2
    blocks = matrices // 64
    nf4 = matrices // 2 + blocks + 4 * blocks // 256 + 7 * (1024 + 64)
    pages = [-(-size // 4096) * 4096 for size in (matrices + 4 * rows + norms, nf4 + norms)]
    assert [one.name for one in LLAMA_3_70B.formats] == ["bfloat16", "int8", "nf4"]
    assert [set(one.layer_bytes) for one in LLAMA_3_70B.formats[1:]] == [{pages[0]}, {pages[1]}]


def test_a_draft_is_counted_in_int8_rows_with_its_embeddings():
    draft = LLAMA_3_8B.as_draft(2)
    matrices = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    rows = 4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096
    assert draft.num_bytes == 32 * (matrices + 4 * rows + 2 * 4096 * 2) + 2 * (2 * 128256 * 4096 + 4096)
    assert draft.cache_bytes_per_token == 2 * 32 * 8 * 128 * 2


def test_tied_embeddings_are_counted_once():
    untied = ModelShape(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | {"is_tied": True})
    assert TINY.others_bytes - untied.others_bytes == 96 * 32 * 4


def test_a_plain_need_has_no_tree_and_counts_the_files():
    need = LLAMA_3_70B.need(None, context_tokens=100, max_nodes=256, compute_item_bytes=2)
    assert (need.max_nodes, need.capacity_tokens) == (1, 101)
    assert need.file_bytes == 2 * LLAMA_3_70B.num_parameters


def test_what_is_published_in_four_bits_has_no_other_format():
    shape = replace(TINY, published_as="nf4")
    assert [one.name for one in shape.formats] == ["nf4"]
    assert shape.held_bytes("int8") == shape.held_bytes("stored") == shape.formats[0].total_bytes


def test_a_substitute_shares_embeddings_and_head_and_a_draft_as_published_does_not():
    assert TINY.as_draft(4, held="nf4", is_substitute=True).num_bytes == TINY.held_bytes("nf4")
    assert TINY.as_draft(4, held="stored").num_bytes == TINY.held_bytes("stored") + TINY.others_bytes


def test_an_mlp_without_gate_has_one_matrix_less():
    plain = replace(TINY, is_gated=False)
    assert TINY.num_layer_parameters - plain.num_layer_parameters == TINY.hidden_size * TINY.inner_size
    assert len(plain.matrices) == 6
