"""Hybrids of attention and Gated DeltaNet: trees, texts and scores are those of transformers' recurrence per token.

No trained one is small enough for a test, so that all are random: every grouping of heads, width of convolution and
range of gates, and rounds that accept anything, fail and are cut back.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offload.errors import CheckpointError
from runtime.config import SamplingParams
from runtime.engine.engine import verify_input
from runtime.engine.loading import OpenSession
from runtime.model.model_loader import ModelFiles
from runtime.model.pass_shapes import MOST_MARKS
from runtime.model.recurrent_cache import BORDER_TOKENS, RecurrentLayer
from runtime.model.streamed_model import PassInput, StreamedModel, chain_input
from runtime.planner.prefill import PassWidths
from runtime.scoring.scorer import TokenPair
from runtime.speculation.token_tree import TokenTree
from tests.runtime.scoring.test_scorer import random_pairs, with_passes
from tests.support.hybrids import KINDS, path_logits, random_path, random_tree, save_hybrid
from tests.support.model_factory import edit_config
from tests.support.reference_models import own_logits
from tests.support.session_factory import answer, open_tiny, request
from tests.system.test_batch import alone, finished_texts, mixed_requests

HEADS = [
    {"linear_num_key_heads": 1, "linear_num_value_heads": 1, "linear_conv_kernel_dim": 2},
    {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_conv_kernel_dim": 4},
    {"linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_value_head_dim": 4, "linear_conv_kernel_dim": 7},
]
GATES = [(0.01, 0.1), (0.5, 3.0), (8.0, 16.0)]
"""From what forgets hardly anything to what forgets all at once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hybrid(tmp_path_factory.mktemp("models") / "hybrid")


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hybrid(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hybrid(tmp_path_factory.mktemp("models") / "draft", seed=9)


def assert_is_its_paths(
    model: StreamedModel, folder: Path, text: list[int], tree: TokenTree, rows: torch.Tensor
) -> None:
    expected = path_logits(folder, text, tree.topology.parents.tolist(), tree.token_ids.tolist())
    assert_close(model.logits(rows), expected)


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, bound: float = 1e-5) -> None:
    """Logits differ by so much of the largest of them at most."""
    assert float((found - expected).abs().max()) < bound * float(expected.abs().max())


def read_in_pieces(model: StreamedModel, ids: list[int], num_tokens: int) -> None:
    """Let a model read a text in passes of so many tokens."""
    for start in range(0, len(ids), num_tokens):
        model.run_pass(chain_input(ids[start : start + num_tokens], num_cached=start), num_wanted=1)


class InterruptedPassError(Exception):
    """What a layer raises in the middle of a pass."""


def fail_once(model: StreamedModel, inputs: PassInput) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedPassError

    hook = model.parts.layers[2].register_forward_pre_hook(interrupt)
    with pytest.raises(InterruptedPassError):
        model.run_pass(inputs)
    hook.remove()


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("heads", HEADS)
def test_trees_are_their_paths_over_many_rounds(
    heads: dict[str, int], gates: tuple[float, float], tmp_path: Path
) -> None:
    """Each round accepts a random path; some passes fail before, and some roots are computed again."""
    folder, source = save_hybrid(tmp_path / "model", gates=gates, **heads), np.random.default_rng(5)
    with open_tiny(folder, num_residents=1, draft="substitute", tree="16x8") as opened:
        model = opened.session.engine.target
        text = source.integers(7, 90, 9).tolist()
        num_cached = 0
        for number in range(7):
            tree = random_tree(text, int(source.integers(1, 12)), source)
            inputs = verify_input(text, tree, num_cached=num_cached)
            if number % 3 == 1:
                fail_once(model, inputs)
                assert model.cache.num_cached == num_cached
            hidden = model.run_pass(inputs)
            assert_is_its_paths(model, folder, text, tree, hidden[-tree.topology.num_nodes :])
            path = random_path(tree, source)
            root = len(text) - 1
            model.cache.compact(root, [root + node for node in path])
            text += [*tree.token_ids[path[1:]].tolist(), int(source.integers(7, 90))]
            num_cached = root + len(path)
            assert model.cache.num_cached == num_cached
            if number % 2:
                num_cached = model.cache.truncate(num_cached - 1)
                assert num_cached == root + len(path) - 1


def test_a_tree_grown_level_by_level_is_its_paths(folder: Path) -> None:
    """As a draft grows it: each level stands on those before, which are in no state yet."""
    source = np.random.default_rng(2)
    with open_tiny(folder, draft="substitute", tree="16x8") as opened:
        model = opened.session.engine.target
        text = source.integers(7, 90, 12).tolist()
        tree = random_tree(text, 14, source)
        topology = tree.topology
        rows = [model.run_pass(chain_input(text, num_cached=0))[-1:]]
        for start, stop in topology.level_slices[1:]:
            positions = np.append(np.arange(len(text)), len(text) - 1 + topology.depths[1:stop])
            sight = topology.ancestor_mask[start:stop, 1:stop].copy()
            inputs = PassInput(tree.token_ids[start:stop], positions[-(stop - start) :], positions, sight)
            rows.append(model.run_pass(inputs))
        assert_is_its_paths(model, folder, text, tree, torch.cat(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_in_slices_is_one_pass(kind: str, tmp_path: Path) -> None:
    """Of a prompt with a tree on it, beside the piece of another text."""
    folder, source = save_hybrid(tmp_path / "model", kind), np.random.default_rng(3)
    with open_tiny(folder, num_residents=1, num_texts=2, draft="substitute", tree="8x4") as opened:
        model = opened.session.engine.target
        texts = [source.integers(7, 90, size).tolist() for size in (43, 29)]
        tree = random_tree(texts[0], 7, source)
        for widths in (None, PassWidths(slice_tokens=4, widest_tokens=12)):
            model._widths = widths
            for lane in range(2):
                model.cache.truncate(0, lane=lane)
            model.run_pass(chain_input(texts[0][:5], num_cached=0))
            parts = [verify_input(texts[0], tree, num_cached=5), chain_input(texts[1], num_cached=0, lane=1)]
            hidden = model.run_batch(parts, num_wanted=[7, 1])
            assert_is_its_paths(model, folder, texts[0], tree, hidden[0])
            alone = own_logits(folder, texts[1])[-1:]
            assert_close(model.logits(hidden[1]), alone)


def test_a_state_is_kept_at_a_border_within_a_pass(folder: Path) -> None:
    """Wherever it is, of a prompt with a tree on it beside another text; and the pass is the same."""
    source = np.random.default_rng(9)
    with open_tiny(folder, num_residents=1, num_texts=2, draft="substitute", tree="8x4") as opened:
        model = opened.session.engine.target
        texts = [source.integers(7, 90, size).tolist() for size in (43, 29)]
        tree = random_tree(texts[0], 7, source)
        for widths in (None, PassWidths(slice_tokens=4, widest_tokens=12)):
            model._widths = widths
            for border in (5, 6, 20, 22, 24, 41, 42, 43, 50):
                for lane in range(2):
                    model.cache.truncate(0, lane=lane)
                model.run_pass(chain_input(texts[0][:5], num_cached=0))
                first = replace(verify_input(texts[0], tree, num_cached=5), border=border)
                hidden = model.run_batch([first, chain_input(texts[1], num_cached=0, lane=1)], num_wanted=[7, 1])
                assert_is_its_paths(model, folder, texts[0], tree, hidden[0])
                assert_close(model.logits(hidden[1]), own_logits(folder, texts[1])[-1:], bound=1e-4)
                assert model.cache.reachable(41) == (border - 1 if BORDER_TOKENS < border <= 42 else 0)
                assert model.cache.last_mark(lane=1) == len(texts[1]) - 1


def test_a_long_text_drifts_by_rounding_alone(long_folder: Path) -> None:
    """2,000 tokens, computed in pieces and token by token in the end."""
    ids = np.random.default_rng(4).integers(7, 90, 2000).tolist()
    with open_tiny(long_folder, context_tokens=2048) as opened:
        model = opened.session.engine.target
        read_in_pieces(model, ids[:1990], 199)
        rows = [model.run_pass(chain_input(ids[place : place + 1], num_cached=place)) for place in range(1990, 2000)]
        found = model.logits(torch.cat(rows))
    assert_close(found, own_logits(long_folder, ids)[-10:], bound=1e-4)


@pytest.mark.parametrize("num_texts", [1, 3])
def test_marks_hold_no_more_than_is_counted(
    num_texts: int, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the end of a long pass, which has made new ones and still holds those that go for them."""
    folder, source = save_hybrid(tmp_path / "model", max_position_embeddings=8192), np.random.default_rng(7)
    settings = {"context_tokens": 8100, "num_residents": 0, "num_texts": num_texts, "draft": other, "tree": "8x4"}
    counts: dict[RecurrentLayer, int] = {}
    settle = RecurrentLayer.settle

    def count(layer: RecurrentLayer) -> None:
        made = [mark for _, mark in layer._pending_marks]
        kept = [mark for marks in layer._marks for mark in marks.values()]
        counts[layer] = max(counts.get(layer, 0), len({*made, *kept}))
        settle(layer)

    monkeypatch.setattr(RecurrentLayer, "settle", count)
    with open_tiny(folder, **settings) as opened:
        engine, need = opened.session.engine, opened.plan.need
        assert engine.drafter is not None and need.draft is not None and need.draft.workspace is not None
        monkeypatch.setattr(engine.prefill, "next_tokens", lambda num_tokens, costs: min(num_tokens, 1024))
        for lane in range(num_texts):
            engine.begin(source.integers(7, 90, 8000 // num_texts).tolist(), SamplingParams(), source, lane=lane)
        while any(sequence.num_pending > 1 for sequence in engine.sequences):
            list(engine.step(engine.sequences))
        most = [
            max(counts[layer] for layer in model.cache.recurrent) for model in (engine.target, engine.drafter.model)
        ]
        held = most[0] * need.workspace.state_bytes + most[1] * need.draft.workspace.state_bytes
    assert most[0] > MOST_MARKS // num_texts * num_texts and held <= need.mark_bytes


def test_a_text_is_cut_to_the_nearest_state_that_was_kept(long_folder: Path) -> None:
    """And what is left is as good as new; behind a border nothing has to be computed again."""
    ids = np.random.default_rng(6).integers(7, 90, 1500).tolist()
    with open_tiny(long_folder, context_tokens=2048) as opened:
        model = opened.session.engine.target
        read_in_pieces(model, ids, 300)
        for wanted, expected in ((1500, 1500), (1499, 1499), (1498, 1199), (1199, 1199), (700, 599), (20, 0)):
            assert model.cache.reachable(wanted) == expected
        for wanted in (1499, 1300, 650):
            left = model.cache.truncate(wanted)
            assert left == model.cache.num_cached and left <= wanted
            found = model.logits(model.run_pass(chain_input(ids[left : left + 7], num_cached=left)))
            assert_close(found, own_logits(long_folder, ids[: left + 7])[left:], bound=1e-4)


SETTINGS: list[dict[str, Any]] = [
    {"draft": "substitute", "tree": "9x4"},
    {"draft": "other", "tree": "12x5", "num_texts": 3},
    {"draft": "other", "tree": "dynamic", "num_texts": 2},
    {"draft": "none", "num_texts": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_text_is_the_one_it_has_alone(settings: dict[str, Any], folder: Path, other: Path) -> None:
    """Greedy and sampled, with penalties, bans and lookups, through trees that a hybrid drafts, side by side."""
    requests = mixed_requests(9)
    expected = alone(folder, requests)
    settings = settings | {"draft": other if settings["draft"] == "other" else settings["draft"]}
    with open_tiny(folder, num_residents=0, lookup="on", **settings) as opened:
        for order in (requests, requests[::-1]):
            found = finished_texts(opened, order)
            assert {name: one.text for name, one in found.items()} == expected


def passes_of(opened: OpenSession) -> list[int]:
    """How many tokens each pass of the target has, from now on."""
    run, counts = opened.session.engine.target.run_batch, []
    opened.session.engine.target.run_batch = lambda parts, **options: (  # type: ignore[method-assign]
        counts.append(sum(part.num_tokens for part in parts)) or run(parts, **options)
    )
    return counts


@pytest.mark.parametrize("draft", ["none", "substitute"])
def test_an_answer_that_is_asked_again_reads_its_prompt_from_the_border(draft: str, folder: Path) -> None:
    """And so does the next turn: only what is new is computed."""
    asked = request("the cat and the dog and " * 4, temperature=0.8, seed=3)
    with open_tiny(folder, draft=draft, tree="6x3" if draft != "none" else "auto") as opened:
        counts = passes_of(opened)
        first = answer(opened, asked)[1]
        assert counts[0] > 40
        begun = len(counts)
        assert answer(opened, asked)[1] == first
        assert counts[begun] <= 6, "the root and its tree"
        with open_tiny(folder) as fresh:
            longer = request("the cat and the dog and " * 4 + "a dog", temperature=0.8, seed=3)
            assert answer(opened, longer)[1] == answer(fresh, longer)[1]


@pytest.mark.parametrize("most_marks", [1, 2, 3])
@pytest.mark.parametrize("draft", ["none", "substitute"])
def test_after_a_long_answer_its_prompt_is_still_read_from_the_border(
    draft: str, most_marks: int, long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few states are kept, and however close together those around the border are."""
    monkeypatch.setattr("runtime.model.recurrent_cache.MOST_MARKS", most_marks)
    monkeypatch.setattr("runtime.model.recurrent_cache.MARK_TOKENS", 8)
    text, params = "the cat and the dog and " * 4, {"temperature": 0.8, "seed": 3, "banned_tokens": (2,)}
    with open_tiny(long_folder, draft=draft, tree="6x3" if draft != "none" else "auto", context_tokens=512) as opened:
        counts = passes_of(opened)
        answer(opened, request(text, **params))
        asked = request(text + text, max_new_tokens=120, **params)
        finished, first = answer(opened, asked)
        assert len(first) == 120
        begun = len(counts)
        assert answer(opened, asked)[1] == first
        assert counts[begun] <= 6, "the root and its tree"
        if most_marks > 1:
            num_text = finished.statistics.prompt_tokens + 120
            assert opened.session.engine.target.cache.last_mark() > num_text - 20, "beside the one at its end"


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_text_alone(kind: str, num_lanes: int, tmp_path: Path) -> None:
    """Token by token, in whatever passes: a branch that a state is too far for is read again from a mark."""
    folder, pairs = save_hybrid(tmp_path / "model", kind), random_pairs(3)
    expected = [token_log_probs(folder, pair) for pair in pairs]
    with open_tiny(folder, num_residents=1, num_texts=num_lanes) as opened:
        for slice_tokens, most_tokens in ((1, 1), (5, 20), (8, 64), (100, 100)):
            scorer, found = with_passes(opened, slice_tokens=slice_tokens, most_tokens=most_tokens), {}
            for done in scorer.score(pairs, num_likeliest=3):
                for index, score in done.scores.items():
                    found[index] = (score, done.predictions[index])
            assert sorted(found) == list(range(len(pairs)))
            for index, rows in enumerate(expected):
                (score, predictions), pair = found[index], pairs[index]
                targets = pair.token_ids[-pair.num_scored :]
                chosen = rows[np.arange(len(rows)), targets]
                assert [one.chosen.token_id for one in predictions] == targets.tolist()
                assert [one.chosen.logprob for one in predictions] == pytest.approx(chosen.tolist(), abs=1e-4)
                assert score.log_likelihood == pytest.approx(float(chosen.sum()), abs=1e-3)
                assert score.is_greedy == bool((rows.argmax(axis=1) == targets).all())
                for one, row in zip(predictions, rows, strict=True):
                    likeliest = [each.logprob for each in one.likeliest]
                    assert likeliest == pytest.approx(np.sort(row)[::-1][:3].tolist(), abs=1e-4)


def token_log_probs(folder: Path, pair: TokenPair) -> np.ndarray:
    """What transformers makes of every token that may come in the place of each one that is scored, (N, V)."""
    logits = own_logits(folder, pair.token_ids[:-1].tolist())[-pair.num_scored :]
    rows: np.ndarray = logits.log_softmax(dim=-1).numpy()
    return rows


def test_heads_that_predict_several_tokens_are_passed_over(folder: Path, tmp_path: Path) -> None:
    """As published ones have them beside the decoder's layers."""
    copied = shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(copied / "model.safetensors")
    extra = {f"mtp.layers.0.{name}": torch.zeros(3) for name in ("mlp.up_proj.weight", "input_layernorm.weight")}
    save_file(tensors | extra, copied / "model.safetensors", {"format": "pt"})
    with open_tiny(folder) as plain, open_tiny(copied) as opened:
        assert answer(opened, request())[1] == answer(plain, request())[1]


@pytest.mark.parametrize("draft_format", ["int8", "nf4"])
def test_a_hybrid_drafts_in_a_smaller_format(draft_format: str, folder: Path) -> None:
    with (
        open_tiny(folder) as plain,
        open_tiny(folder, draft="substitute", draft_format=draft_format, tree="8x4") as own,
    ):
        finished, found = answer(own, request())
        assert found == answer(plain, request())[1]
        assert finished.statistics.rounds < len(found), "some of what it drafts is accepted"


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    """Experts, as everywhere, and a convolution of which a part is missing."""
    folder = save_hybrid(tmp_path / "experts", "qwen3_next")
    edit_config(folder, num_experts=4)
    with pytest.raises(CheckpointError, match="mixture of experts"):
        ModelFiles.open(folder)
    folder = save_hybrid(tmp_path / "olmo", "olmo_hybrid")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.linear_attn.k_conv1d.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"holds 53 rows of 'model.layers.0.linear_attn.conv1d.weight' in 2 tensors"
    ):
        ModelFiles.open(folder)
