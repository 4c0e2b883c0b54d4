import io

import pytest
from rich.console import Console

from tests.support.fit_needs import GB
from tests.support.plan_fakes import plan_machine, planned
from tui.commands.plan_text import print_plan


def text_of(report, *, width=80):
    file = io.StringIO()
    print_plan(report, Console(file=file, width=width, highlight=False))
    return file.getvalue()


def flat(report):
    return " ".join(text_of(report).split())


def test_everything_that_was_asked_for_is_shown():
    report = planned()
    main, second, plain = report.main, report.main.ranking.second, report.plain
    text = flat(report)
    for expected in (
        "Llama-3-70B on L40, draft Llama-3-8B, 4096 tokens of context, greedy",
        f"speed {main.seconds_per_token:.3g} s/token ({1 / main.seconds_per_token:.3g} tokens/s); bound by the link",
        f"settings --draft meta-llama/Meta-Llama-3-8B-Instruct --draft-format {main.draft_held} --context 4096",
        f"tree {main.tree.num_nodes} nodes x {main.tree.num_levels} levels, {main.tree.expected_tokens:.2f} tokens",
        "layers bfloat16: 19 on the device (32.5 GB), 61 in pinned host memory (104 GB)",
        "ring 104 GB move in every pass, through 2 slots (3.42 GB)",
        "device 48.6 GB of 49.8 GB",
        f"second best {second.num_nodes} x {second.num_levels}: ",
        f"plain {plain.seconds_per_token:.3g} s/token",
        "other formats int8 ",
        "what more would bring 1.00 GB more device memory ",
        "PCIe 5.0 instead of 4.0 ",
        "what this rests on link published: 24.9 GB/s, PCIe 4.0 x16: ",
        "computing data sheet: 864 GB/s and 181 TFLOPS",
        "acceptance published: Llama-3-70B-Instruct / 8B-Instruct",
        "note: host memory is assumed",
    ):
        assert expected in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal_or_80_columns(width):
    assert max(map(len, text_of(planned(), width=width).splitlines())) <= min(width, 80)


def test_a_users_tree_is_shown_with_the_best_and_the_option():
    text = flat(planned(tree="32x6", temperature=0.6))
    assert "--tree 32x6 --context 4096" in text and "temperature 0.6" in text
    assert "best tree 1024 x " in text


def test_plain_decoding_has_no_tree_and_no_second_line():
    text = flat(planned(draft="none"))
    assert "tree none: one token per pass" in text and "settings --draft none --context" in text
    assert "plain" not in text.split("what this rests on")[0].replace("plain decoding", "")


def test_a_format_that_does_not_run_says_why():
    report = planned(plan_machine(disk=None), draft="none", format="nf4", host_bytes=30 * GB)
    assert "bfloat16 does not run: " in flat(report)


def test_what_brings_nothing_is_said():
    text = flat(planned("rtx-4060-ti-16gb", target="qwen2.5-7b"))
    assert "no change" in text
