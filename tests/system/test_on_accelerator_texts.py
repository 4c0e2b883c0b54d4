"""The text on the simulated accelerator is the CPU's, whatever lies where, and no pass waits without need."""

import functools
import gc
import sys
from dataclasses import replace
from typing import Any

import torch

from offload.copying.accelerator_engine import AcceleratorCopyEngine
from profiles.errors import BadInputError
from runtime.engine import growing_tree
from runtime.engine.load_plan import LoadPlan
from runtime.events import Finished
from runtime.speculation.schemes import Coupled
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import (
    ASKED,
    DEVICE,
    FEW_TIERS,
    SEED,
    TIERS,
    answer_under_watch,
    capacity_restored,
    config_of,
    cpu_text,
    folder_of,
    in_layers,
    num_tiers,
    opened_on,
    quick_sessions,
    scratch,
)
from tests.support.quantized_factory import save_quantized_folder
from tests.support.session_factory import answer
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions)
check = CHECKS.check


KINDS = ("llama", "qwen2", "gemma3")


def text_is_the_cpus(kind: str, tiers: str) -> None:
    folder = folder_of(kind)
    with opened_on(folder, **in_layers(TIERS[tiers], folder)) as opened:
        wanted = {"resident": 0, "host": 1, "disk": 2}
        counts = num_tiers(opened)
        for word, place in wanted.items():
            assert (counts[place] > 0) == (word in tiers), (tiers, counts)
        assert answer_under_watch(opened) == cpu_text(folder)
        assert "pageable" not in " ".join(opened.notes)


DRAFTS: dict[str, dict[str, Any]] = {
    "substitute": {"draft": "substitute", "num_residents": 1},
    "substitute in nf4": {"draft": "substitute", "draft_format": "nf4", "num_residents": 0},
    "the target itself": {"draft": SEED, "num_residents": 1},
    "another model": {"draft": SEED + 1, "num_residents": 0},
    "another model in int8": {"draft": SEED + 1, "draft_format": "int8", "num_residents": 1},
}


def draft_changes_no_text(kind: str, draft: str) -> None:
    """Where the target drafts for itself, whole paths are accepted and the caches are compacted on the device."""
    folder, settings = folder_of(kind), dict(DRAFTS[draft])
    if isinstance(settings["draft"], int):
        settings["draft"] = folder_of(kind, seed=settings["draft"])
    with opened_on(folder, tree="8x4", **settings) as opened:
        assert opened.session.engine.drafter is not None
        assert answer_under_watch(opened) == cpu_text(folder)


def draft_on_another_device_changes_no_text(draft: str, device: str) -> None:
    """Its weights and cache are there, none of them beside the target, whose layers get all of that room."""
    folder, settings = folder_of("llama"), {**DRAFTS[draft], "draft_device": device}
    if isinstance(settings["draft"], int):
        settings["draft"] = folder_of("llama", seed=settings["draft"])
    with opened_on(folder, tree="8x4", **settings) as opened:
        drafter = opened.session.engine.drafter
        assert drafter is not None
        assert answer_under_watch(opened) == cpu_text(folder)
        assert {str(block.device) for block in drafter.model.cache._blocks} == {device}
        assert not any("draft" in label for label in opened.placement.fixed)


def draft_on_a_device_that_cannot_hold_it_is_refused(folder_kind: str) -> None:
    folder = folder_of(folder_kind)
    with capacity_restored():
        sim.set_capacity_bytes(1 << 20, device=1)
        for device, words in (("sim:1", "on sim:1, where"), ("sim:7", "there is no device sim:7 here")):
            try:
                LoadPlan.build(config_of(folder, draft="substitute", draft_device=device))
            except BadInputError as error:
                assert words in str(error) and "\n" not in str(error), error
            else:
                raise AssertionError(device)


def tree_in_context_changes_no_text(kind: str) -> None:
    folder, draft = folder_of(kind), folder_of(kind, seed=SEED + 1)
    with opened_on(folder, tree="dynamic:8x4", draft=draft, num_residents=0) as opened:
        assert answer_under_watch(opened) == cpu_text(folder)
        sampled = replace(ASKED, params=replace(ASKED.params, temperature=0.9, seed=3, verification="coupled"))
        found = answer(opened, sampled)[1]
        assert sim.hazards() == []
    with opened_on(folder, device="cpu") as plain:
        assert found == answer(plain, sampled)[1]


def texts_together_are_the_cpus(kind: str) -> None:
    """Three at a time, sampled and greedy, the last of them with the beginning of others."""
    folder, draft = folder_of(kind), folder_of(kind, seed=SEED + 1)
    prompts = ["the cat", "the cat and the dog and a cat", "a dog and a dog and a cat", "the cat and the dog and a dog"]
    requests = [
        replace(ASKED, id=str(number), prompt=text, params=replace(ASKED.params, temperature=0.7 * (number % 2)))
        for number, text in enumerate(prompts)
    ]
    with opened_on(folder, tree="8x4", draft=draft, num_residents=0, num_texts=3) as opened:
        events = list(opened.session.generate_all(requests))
        assert sim.hazards() == []
    found = {asked.id: event.text for asked, event in events if isinstance(event, Finished)}
    with opened_on(folder, device="cpu") as plain:
        assert found == {asked.id: answer(plain, asked)[0].text for asked in requests}


def filtered_sampling_ranks_no_row_on_the_processor(tree: str) -> None:
    """What the chat samples with: only the walk's rows of the target come back, and a few numbers a node."""
    folder, draft = folder_of("llama"), folder_of("llama", seed=SEED + 1)
    params = replace(ASKED.params, temperature=0.7, top_p=0.95, seed=3, verification="coupled")
    sampled = replace(ASKED, params=params)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a row was ranked on the processor")

    with opened_on(folder, tree=tree, draft=draft, num_residents=0) as opened:
        rank_row_by_row, place = growing_tree.rank_row_by_row, Coupled.place
        try:
            growing_tree.rank_row_by_row = Coupled.place = refuse  # type: ignore[method-assign]
            found = answer(opened, sampled)[1]
        finally:
            growing_tree.rank_row_by_row, Coupled.place = rank_row_by_row, place  # type: ignore[method-assign]
        assert sim.hazards() == []
    with opened_on(folder, device="cpu") as plain:
        assert found == answer(plain, sampled)[1]


def bfloat16_text_does_not_depend_on_the_tier(kind: str) -> None:
    folder = folder_of(kind, torch.bfloat16)
    texts = []
    for tiers in ("all resident", "all on disk", FEW_TIERS[0]):
        with opened_on(folder, **in_layers(TIERS[tiers], folder)) as opened:
            assert opened.plan.dtype == torch.bfloat16
            target = opened.session.engine.target
            hidden = torch.ones(3, target.parts.model.config.hidden_size, dtype=torch.bfloat16, device=DEVICE)
            logits = target.logits(hidden)
            assert (logits != logits.bfloat16().float()).any(), "logits are rounded to the type of the activations"
            texts.append(answer_under_watch(opened))
    assert texts == texts[:1] * len(texts)


def bfloat16_files_in_float32_are_the_cpus(kind: str) -> None:
    """Widened on the device, in a scratch that is allocated once."""
    folder = folder_of(kind, torch.bfloat16)
    with opened_on(folder, num_residents=1, compute_dtype="float32") as opened:
        assert answer_under_watch(opened) == cpu_text(folder)


for _kind in KINDS:
    for _tiers in TIERS if _kind == "llama" else FEW_TIERS:
        CHECKS[f"text_is_the_cpus: {_kind}, {_tiers}"] = functools.partial(text_is_the_cpus, _kind, _tiers)
    for _draft in DRAFTS if _kind == "llama" else ("the target itself",):
        CHECKS[f"draft_changes_no_text: {_kind}, {_draft}"] = functools.partial(draft_changes_no_text, _kind, _draft)
    CHECKS[f"tree_in_context_changes_no_text: {_kind}"] = functools.partial(tree_in_context_changes_no_text, _kind)
    CHECKS[f"texts_together_are_the_cpus: {_kind}"] = functools.partial(texts_together_are_the_cpus, _kind)
for _draft, _device in (("another model", "sim:1"), ("substitute", "sim:1"), ("another model", "cpu")):
    CHECKS[f"draft_on_another_device_changes_no_text: {_draft}, {_device}"] = functools.partial(
        draft_on_another_device_changes_no_text, _draft, _device
    )
CHECKS["draft_on_a_device_that_cannot_hold_it_is_refused"] = functools.partial(
    draft_on_a_device_that_cannot_hold_it_is_refused, "llama"
)
for _tree in ("7x4", "dynamic:8x4"):
    CHECKS[f"filtered_sampling_ranks_no_row_on_the_processor: {_tree}"] = functools.partial(
        filtered_sampling_ranks_no_row_on_the_processor, _tree
    )
CHECKS["bfloat16_files_in_float32_are_the_cpus"] = functools.partial(bfloat16_files_in_float32_are_the_cpus, "gemma3")
CHECKS["bfloat16_text_does_not_depend_on_the_tier"] = functools.partial(
    bfloat16_text_does_not_depend_on_the_tier, "llama"
)


def quantized_text_is_the_cpus(name: str) -> None:
    """No kernel of bitsandbytes knows the device, so that its matrices are widened by plain operators."""
    folder = save_quantized_folder(scratch() / f"quantized {name}", name, sizes={})
    with opened_on(folder, compute_dtype="float32", **in_layers(TIERS[FEW_TIERS[1]], folder)) as opened:
        assert answer_under_watch(opened) == cpu_text(folder)


for _name in ("nf4 nested", "int8"):
    CHECKS[f"quantized_text_is_the_cpus: {_name}"] = functools.partial(quantized_text_is_the_cpus, _name)


TRAVELLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "three slots": {"ring_slots": 3},
    "on disk": {"host_memory_bytes": 0},
    "substitute": {"draft": "substitute", "tree": "8x4"},
}


def travelling_cache_changes_no_text(kind: str, way: str) -> None:
    """Its rows cross the link in both directions, and no pass waits for them or copies pageable memory."""
    folder = folder_of(kind)
    with opened_on(folder, kv_cache="host", device_memory_bytes=0, **TRAVELLING[way]) as opened:
        assert len(opened.plan.residency.travelling) == opened.streamer.num_layers
        assert answer_under_watch(opened) == cpu_text(folder)
        last = opened.session.engine.target.last_pass
        assert last.cache_bytes_sent > 0 and last.cache_bytes_returned > 0


for _way in TRAVELLING:
    CHECKS[f"travelling_cache_changes_no_text: {_way}"] = functools.partial(
        travelling_cache_changes_no_text, "gemma3" if _way == "substitute" else "llama", _way
    )


def rows_of_int8_are_widened_without_waiting(kind: str, way: str) -> None:
    """The text is the processor's with rows of int8, and half or less of the bytes of keys and values move."""
    folder, moved = folder_of(kind), {}
    for kv_format in ("exact", "int8"):
        settings = {"kv_cache": "host", "kv_format": kv_format, "device_memory_bytes": 0, **TRAVELLING[way]}
        with opened_on(folder, **settings) as opened:
            text, last = answer_under_watch(opened), opened.session.engine.target.last_pass
            moved[kv_format] = last.cache_bytes_sent, last.cache_bytes_returned
            assert sum(moved[kv_format]) > 0 and opened.streamer.rows is not None
            assert opened.streamer.rows.num_bytes == opened.placement.travelling_bytes
    with opened_on(folder, device="cpu", link="10GB/s", **settings) as opened:
        assert answer(opened, ASKED)[1] == text
    if not settings.get("draft"):  # the same passes
        assert all(2 * narrow <= exact for narrow, exact in zip(moved["int8"], moved["exact"], strict=True))


for _way in TRAVELLING:
    CHECKS[f"rows_of_int8_are_widened_without_waiting: {_way}"] = functools.partial(
        rows_of_int8_are_widened_without_waiting, "gemma3" if _way == "substitute" else "llama", _way
    )


@check
def auto_is_the_accelerator() -> None:
    with opened_on(folder_of("llama"), device="auto", num_residents=1) as opened:
        assert opened.plan.device == torch.device("sim", 0)
        assert isinstance(opened.link, AcceleratorCopyEngine)
        assert {slot.device for slot in opened.streamer.slots} == {torch.device("sim", 0)}
        assert answer(opened, ASKED)[1] == cpu_text(folder_of("llama"))


@check
def the_second_device_is_used_alone() -> None:
    """Whatever forgets the index lands on the first one, where nothing may be allocated."""
    folder, first = folder_of("llama"), torch.device("sim", 0)
    gc.collect()
    before = torch.accelerator.memory_allocated(first)
    for settings in (
        {"num_residents": 1, "draft": folder, "tree": "8x4"},
        TIERS[FEW_TIERS[1]],
    ):
        with opened_on(folder, device="sim:1", **in_layers(settings, folder)) as opened:
            assert {slot.device for slot in opened.streamer.slots} == {torch.device("sim", 1)}
            assert answer_under_watch(opened) == cpu_text(folder)
            assert torch.accelerator.memory_allocated(first) == before
        assert torch.accelerator.current_device_index() == 0


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
