import subprocess
import sys
from dataclasses import replace

import numpy as np

from runtime.fit.models import known_shapes
from runtime.model.pass_shapes import widest_level
from runtime.speculation.acceptance import builtin_acceptance
from runtime.speculation.tree_search import best_first
from tests.runtime.fit.test_shapes import TINY
from tests.support.fit_needs import round_need
from tests.support.paths import ROOT


def test_another_format_is_files_still_to_be_written():
    need = TINY.need(None, context_tokens=64, max_nodes=256, compute_item_bytes=4)
    stored, int8, nf4 = need.formats
    assert need.in_format(stored.name) == need
    as_int8 = need.in_format("int8")
    assert as_int8.layers == int8 and [layers.name for layers in as_int8.formats] == ["int8", "nf4"]
    assert as_int8.file_bytes == int8.total_bytes + need.others_bytes + need.file_bytes
    assert need.in_format("nf4").file_bytes == nf4.total_bytes + need.others_bytes


def test_without_draft_there_is_no_tree():
    need = TINY.need(TINY.as_draft(4), context_tokens=64, max_nodes=256, compute_item_bytes=4)
    plain = need.without_draft()
    assert (need.capacity_tokens, plain.capacity_tokens) == (320, 65)
    saved = need.draft.num_bytes + (320 * 2 - 65) * need.cache_bytes_per_token
    saved += need.workspace.pass_bytes(320, 320) - need.workspace.pass_bytes(65, 65)
    saved += need.draft.scratch_bytes  # in which the draft's int8 rows are widened
    assert need.fixed_bytes - plain.fixed_bytes == saved
    assert (
        replace(need, draft=replace(need.draft, num_bytes=7)).fixed_bytes == need.fixed_bytes - need.draft.num_bytes + 7
    )


def test_nodes_that_are_added_to_a_tree_have_their_place_in_caches_and_passes():
    need = TINY.need(TINY.as_draft(4), context_tokens=640, max_nodes=256, compute_item_bytes=4)
    need = replace(need, prefill_tokens=0)  # as where nothing streams
    more = replace(need, num_graft_nodes=32)
    assert more.capacity_tokens == need.capacity_tokens + 32
    added = 32 * 2 * need.cache_bytes_per_token
    added += need.workspace.pass_bytes(544, 928) - need.workspace.pass_bytes(512, 896)
    assert more.fixed_bytes - need.fixed_bytes == added
    assert more.without_draft() == need.without_draft()


def test_the_largest_tree_takes_little_beside_the_layers():
    """Found: 256 nodes on any processor, where 1,024 of a 1.5B model take 3 % of its layers and of a 135M one 44 %."""
    need = round_need(draft_gb=1)  # 40 GB of layers; a node's keys and values take 1 MB
    assert need.with_largest_tree(is_cpu=True).max_nodes == 1024
    for node_bytes, nodes in ((10**6 * 1600 // 1024, 1024), (1600 * 10**6 // 600, 512), (10**8, 256)):
        wide = replace(need, cache_bytes_per_token=node_bytes)
        assert wide.with_largest_tree(is_cpu=True).max_nodes == nodes
        assert wide.with_largest_tree(is_cpu=False).max_nodes == 1024
    assert need.draft is not None
    of_draft = replace(need, draft=replace(need.draft, cache_bytes_per_token=10**6))
    assert of_draft.with_largest_tree(is_cpu=True).max_nodes == 512
    assert need.in_format("nf4").with_largest_tree(is_cpu=True).max_nodes == 256


def test_states_are_counted_twice_and_their_marks_where_they_wait():
    target, draft = known_shapes()["Qwen3.6-27B"], known_shapes()["Qwen3.5-0.8B"]
    for is_cpu in (True, False):
        drafting = draft.as_draft(2, is_cpu=is_cpu)
        need = target.need(drafting, context_tokens=4096, max_nodes=64, compute_item_bytes=2, is_cpu=is_cpu)
        # Eight that are kept, and those that a long pass of the target or a slice of the draft's makes.
        marks = 12 * target.workspace(2).state_bytes + 10 * draft.workspace(2).state_bytes
        assert need.mark_bytes == marks
        assert replace(need, num_texts=9).mark_bytes == 0, "there are too few for all"
        held = target.workspace(2).states_bytes(num_texts=1, num_nodes=64)
        held += draft.workspace(2).states_bytes(num_texts=1, num_nodes=64, is_grown=True)
        assert need.fixed_entries()["states of recurrent layers"] == held + (marks if is_cpu else 0)
        assert need.host_side_bytes == need.stage_bytes + need.host_table_bytes + (0 if is_cpu else marks)
        largest = need.with_largest_tree(is_cpu=is_cpu).max_nodes
        rows = sum(2 * shape.workspace(2).delta.row_bytes(2) for shape in (target, draft))
        assert largest == 512 and 2 * largest * rows > 0.04 * need.layers.total_bytes
    assert (
        "states of recurrent layers"
        not in TINY.need(None, context_tokens=64, max_nodes=1, compute_item_bytes=4).fixed_entries()
    )


def test_a_scratch_is_counted_for_each_model_that_widens_weights():
    need = TINY.need(TINY.as_draft(4, held="stored"), context_tokens=64, max_nodes=8, compute_item_bytes=4)
    assert "upcast scratch" not in need.fixed_entries()
    assert need.in_format("int8").fixed_entries()["upcast scratch"] == need.scratch_bytes
    widened = TINY.need(TINY.as_draft(2), context_tokens=64, max_nodes=8, compute_item_bytes=2)
    assert widened.fixed_entries()["upcast scratch"] == 2 * widened.scratch_bytes + widened.head_scratch_bytes


def test_half_of_the_largest_tree_may_be_one_level_of_the_draft_s_passes():
    """Found: a quarter was assumed, and of the trees for 16 x 3 nodes the best has 5 on its second level."""
    draft = TINY.as_draft(4, held="stored")
    need = TINY.need(draft, context_tokens=64, max_nodes=2001, compute_item_bytes=4)
    need = replace(need, workspace=replace(need.workspace, item_bytes=0))
    wide = draft.workspace.pass_bytes(1000, need.capacity_tokens)
    assert need.fixed_entries()["activations and logits"] == wide > draft.workspace.ranking_bytes(500)
    search = best_first(builtin_acceptance(substitute_held=None), 16, 3)
    topology = search.topology(16)
    assert np.bincount(topology.depths[topology.num_children > 0]).max() == 5 <= widest_level(16)


def test_what_a_model_needs_is_known_without_torch():
    """`overstory plan` answers from shapes alone, faster than torch is imported."""
    root = ROOT
    program = "import runtime.fit.models, runtime.fit.advice, sys; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
    assert ran.stdout == "False\n"
