"""The figures that README.md and tests/FIGURES.md quote: JSON lines of benchmarks with date, commit and machine.

    python -m tests.support.figures measure MODELS [NAME ...]   # run the commands, or those named, and keep the lines
    python -m tests.support.figures write                       # only write FIGURES.md and the README's table anew

MODELS is a folder with the models qwen-coder-1.5b, qwen-coder-0.5b and smollm2-135m, and for `peers` the first two as
NAME-bf16.gguf, which llama.cpp's convert_hf_to_gguf.py writes. Nothing else should run meanwhile.
"""

import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.support.paths import ROOT
from tui.cli import execute

KEPT = ROOT / "tests" / "figures.jsonl"
WRITTEN = ROOT / "tests" / "FIGURES.md"
README = ROOT / "README.md"
IN_README = ("demo", "ratio", "trees", "round", "plan")
MODELS = {
    "1.5B": "qwen-coder-1.5b",
    "0.5B": "qwen-coder-0.5b",
    "135M": "smollm2-135m",
    "1.5B.gguf": "qwen-coder-1.5b-bf16.gguf",
    "0.5B.gguf": "qwen-coder-0.5b-bf16.gguf",
}
OPENING = """\
# Figures

Written by `python -m tests.support.figures write` from tests/figures.jsonl; do not edit. Each row is one run of its
command at the commit and on the machine named, and nothing else ran meanwhile. `1.5B` and `0.5B` are
Qwen2.5-Coder-Instruct, `135M` is SmolLM2-Instruct, `demo` the model that `make demo` fetches. Times differ between runs
and machines; ratios are those of one run.
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One benchmark, and what is said of its JSON line."""

    name: str
    what: str
    command: str
    """As a person types it; names of MODELS stand for their folders."""
    say: Callable[[Mapping[str, Any]], str]


def _say_comparison(record: Mapping[str, Any]) -> str:
    plain, tree = record["plain"], record["tree"]
    return (
        f"{record['speedup']:.2f} times as fast as plain streaming: {plain['seconds_per_token']:.3f} and "
        f"{tree['seconds_per_token']:.3f} s/token, {tree['tokens_per_round']:.1f} tokens per pass; "
        f"{record['num_identical']} of {record['num_fixed']} texts identical"
    )


def _say_stream(record: Mapping[str, Any]) -> str:
    return (
        f"{record['ratio']:.3f} of the raw link ({record['raw_bytes_per_second'] / 1e9:.2f} GB/s), a pass in "
        f"{record['seconds_over_free_overlap']:.3f} of reading and computing at once; peak memory "
        f"{record['peak_over_planned']:.2f} of what was planned"
    )


def _say_rounds(record: Mapping[str, Any]) -> str:
    return (
        f"{record['ratio']:.3f} of the recurrence ({record['round_seconds']:.2f} s, predicted "
        f"{record['predicted_seconds']:.2f}), link {100 * record['link_utilization']:.0f} % busy, "
        f"{record['tokens_per_round']:.1f} tokens per round"
    )


def _say_perplexity(record: Mapping[str, Any]) -> str:
    return (
        f"{record['perplexity']:.3f}, as transformers loads the folder {record['transformers_perplexity']:.3f} "
        f"({100 * record['relative_difference']:+.4f} %)"
    )


def _say_ratio(record: Mapping[str, Any]) -> str:
    runs = (
        f"{run['speedup']:.1f} times plain streaming at temperature {run['temperature']:g} "
        f"({run['tokens_per_round']:.1f} tokens per pass, bound by the {run['bound']})"
        for run in record["runs"]
    )
    return f"{'; '.join(runs)}; a pass took {record['steps_per_pass']:.0f} draft steps"


def _say_trees(record: Mapping[str, Any]) -> str:
    trees = (
        f"{tree['kind']}, {tree['num_nodes']} nodes: {tree['tokens_per_pass']:.1f} (±{tree['standard_error']:.1f})"
        for tree in record["trees"]
    )
    return f"{'; '.join(trees)}, {record['num_texts']} texts"


def _say_resident(record: Mapping[str, Any]) -> str:
    seconds = record["seconds_per_token"]
    return (
        f"{record['plain_over_float32']:.2f} of transformers' time in float32, {record['plain_over_bfloat16']:.2f} of "
        f"that in bfloat16 ({seconds['draft-none']:.3f}, {seconds['transformers-float32']:.3f} and "
        f"{seconds['transformers-bfloat16']:.3f} s/token); the default takes {record['default_over_plain']:.2f} of the "
        "time without a draft"
    )


def _say_peers(record: Mapping[str, Any]) -> str:
    ours, best = (
        next(row for row in record["settings"] if row["setting"] == name) for name in ("overstory", record["best_peer"])
    )

    def costs(row: Mapping[str, Any]) -> str:
        return (
            f"{row['seconds_per_token']:.2f} s/token ({row['least']:.2f} to {row['most']:.2f}, first token after "
            f"{row['first_token_seconds']:.1f} s, {row['bytes_read_per_token'] / 1e9:.2f} GB read per token)"
        )

    return (
        f"{record['speedup']:.2f} times as fast: {costs(ours)} beside {costs(best)} ({best['setting']}); disk of "
        f"{record['disk_bytes_per_second'] / 1e9:.1f} GB/s, {record['num_prompts']} prompts"
    )


def _say_plan(record: Mapping[str, Any]) -> str:
    plan, plain = record["plan"], record["plain"]
    return (
        f"{plan['seconds_per_token']:.3f} s/token predicted with a tree of {plan['tree']['nodes']} nodes and "
        f"{plan['tree']['levels']} levels, {plain['seconds_per_token']:.2f} plain"
    )


FIGURES = (
    Figure(
        "demo",
        "the demo: four prompts, plain and tree, on an emulated link of 0.1 GB/s",
        "overstory compare --device-memory 256MB --pack off --emulate-link 0.1GB/s --json",
        _say_comparison,
    ),
    Figure(
        "ratio",
        "speedup where a pass takes 220 draft steps, as a 70B over PCIe 4; the paper: 9.5 and 9.3",
        "overstory bench ratio --target 1.5B --draft 0.5B --ring-slots 8",
        _say_ratio,
    ),
    Figure(
        "trees",
        "tokens per pass, trees of fixed shape and trees shaped by context, greedy",
        "overstory bench trees --target 1.5B --draft 0.5B --nodes 64 --nodes 128 --temperature 0",
        _say_trees,
    ),
    Figure(
        "stream",
        "plain passes over an emulated link, every layer streamed",
        "overstory bench stream --target 1.5B --emulate-link 0.5GB/s",
        _say_stream,
    ),
    Figure(
        "round",
        "whole rounds, 32 nodes and 8 levels, against the pipeline recurrence",
        "overstory bench round --target 1.5B --draft 0.5B --tree 32x8 --emulate-link 0.5GB/s",
        _say_rounds,
    ),
    Figure(
        "perplexity",
        "perplexity of a text through streamed passes",
        "overstory bench perplexity --target 1.5B --beside-transformers",
        _say_perplexity,
    ),
    Figure(
        "peers",
        "beside llama.cpp with both models in bf16, in 3.2 GiB of memory that page cache counts in",
        "overstory bench peers --target 1.5B --draft 0.5B --peer-target 1.5B.gguf --peer-draft 0.5B.gguf",
        _say_peers,
    ),
    *(
        Figure(
            f"resident {model}",
            "greedy decoding of a model that stays in memory, without a draft and by default, beside transformers",
            f"python -m tests.support.resident_speed {model}",
            _say_resident,
        )
        for model in ("135M", "0.5B")
    ),
    Figure(
        "plan",
        "Llama-3-70B in bf16 with an 8B draft on an L40, from a description of the machine; published 0.60",
        "overstory plan --machine l40 --target llama-3-70b --json",
        _say_plan,
    ),
)


def measure(figure: Figure, folder: Path) -> dict[str, Any]:
    """Run a figure's command and return its JSON line with what it was measured on."""
    words = [str(folder / MODELS[word]) if word in MODELS else word for word in shlex.split(figure.command)]
    program = {"overstory": ["-c", "from tui.cli import main; main()"], "python": []}[words[0]]
    command = [sys.executable, *program, *words[1:]]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {
        "name": figure.name,
        "command": figure.command,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "seconds": round(time.monotonic() - begun),
        "record": json.loads(done.stdout.splitlines()[-1]),
    }


def commit() -> str:
    """Return the short name of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """Return what this machine is, in a few words."""
    flags = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    extensions = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if f" {name}" in flags]
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores of {platform.machine()} ({', '.join(extensions)}), {memory:.0f} GiB"


def read_kept() -> dict[str, dict[str, Any]]:
    """Return the latest line of each figure, by name."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def written(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of FIGURES.md."""
    rows = ["| what | command | figure | when |", "|---|---|---|---|"]
    for figure in FIGURES:
        if (row := kept.get(figure.name)) is not None:
            when = f"{row['date']}, {row['commit']}, {row['seconds']} s"
            rows.append(f"| {figure.what} | `{row['command']}` | {figure.say(row['record'])} | {when} |")
    machines = sorted({row["machine"] for row in kept.values()})
    return "\n".join([OPENING, *rows, "", *(f"Machine: {each}, no GPU." for each in machines), ""])


CARDS = {"rtx-4060-ti-16gb": "RTX 4060 Ti 16 GB", "rtx-4090": "RTX 4090", "rtx-5090": "RTX 5090", "l40": "L40"}
PLANNED = (
    ("llama-3.3-70b", "Llama 3.3 70B", "auto", "bf16"),
    ("llama-3.3-70b", "", "int8", "int8"),
    ("llama-3.3-70b", "", "nf4", "NF4"),
    ("qwen3.5-27b", "Qwen3.5 27B", "auto", "bf16"),
    ("qwen3.5-27b", "", "nf4", "NF4"),
)


def planned_rows() -> list[str]:
    """Return the README's table of models and cards: tokens per second as `overstory plan` predicts them."""
    rows = [f"| model | format | {' | '.join(CARDS.values())} |", f"|---|---{'|---' * len(CARDS)}|"]
    for model, name, weight_format, format_name in PLANNED:
        speeds = (planned_tokens_per_second(card, model, weight_format) for card in CARDS)
        rows.append(f"| {name} | {format_name} | {' | '.join(f'{speed:.1f} tok/s' for speed in speeds)} |")
    return rows


def planned_tokens_per_second(card: str, model: str, weight_format: str) -> float:
    """Return what `overstory plan --json` predicts."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = execute(["plan", "--machine", card, "--target", model, "--format", weight_format, "--json", "--quiet"])
    assert code == 0
    return float(json.loads(out.getvalue())["plan"]["tokens_per_second"])


def readme_rows(kept: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the README's table: the figures that matter most, without when they were measured."""
    rows = [line.rpartition(" | ")[0] + " |" for line in written(kept).splitlines() if line.startswith("| ")]
    names = [figure.name for figure in FIGURES if figure.name in kept]
    chosen = [row for name, row in zip(names, rows[1:], strict=True) if name in IN_README]
    return ["| what | command | figure |", "|---|---|---|", *chosen]


def with_table(text: str, rows: Sequence[str], *, heading: str) -> str:
    """Return a text with these rows in the place of the first table below the heading."""
    lines = text.splitlines()
    start = lines.index(heading)
    first = next(index for index in range(start, len(lines)) if lines[index].startswith("|"))
    last = next(index for index in range(first, len(lines)) if not lines[index].startswith("|"))
    return "\n".join([*lines[:first], *rows, *lines[last:], ""])


def written_readme() -> str:
    """Return README.md with both of its tables as they should be now."""
    text = with_table(README.read_text(encoding="utf-8"), planned_rows(), heading="## Will it run here?")
    return with_table(text, readme_rows(read_kept()), heading="## Figures")


def main(arguments: Sequence[str]) -> None:
    """Do what the arguments say; see the module's first lines."""
    if arguments[:1] == ["measure"]:
        folder, names = Path(arguments[1]), arguments[2:]
        for figure in FIGURES:
            if not names or figure.name in names:
                row = measure(figure, folder)
                with KEPT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(figure.name, figure.say(row["record"]))
    WRITTEN.write_text(written(read_kept()), encoding="utf-8")
    README.write_text(written_readme(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
