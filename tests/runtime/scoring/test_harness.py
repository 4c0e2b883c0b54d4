"""lm-evaluation-harness itself: the same tasks with our model and with its own of transformers.

Its packages take 600 MB, so that they are set up for `make test-all` alone (extra `eval`).
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hybrids import save_hybrid
from tests.support.paths import ROOT
from tests.support.session_factory import save_tiny_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NUM_ITEMS = 200
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""
# Of its `hf` model a stop string that is part of a special token's name ends a text at that token, if it is alone in a
# batch; these two are not.
WRITING = """
task: tiny_writing
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{words}}"
generation_kwargs: {until: ["C", "th"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match}
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""
TASKS = {"tiny_choice": CHOICE, "tiny_writing": WRITING, "tiny_rolling": ROLLING}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of tasks over 200 questions of a file; nothing is fetched, and what is kept of them is kept in it."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(3)
    words = ["the", "cat", "and", "one", "hen", "in", "a", "pan", "on", "other", "then", "thin", "tin", "ran", "den"]

    def phrase(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    items = [
        {
            "question": f"Q: {phrase(9)}.\nA:",
            "choices": [f" {phrase(3)}" for _ in range(4)],
            "answer": rng.randrange(4),
            "words": phrase(1),
        }
        for _ in range(NUM_ITEMS)
    ]
    file = folder / "items.json"
    file.write_text("\n".join(map(json.dumps, items)))
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(task.replace("FILE", str(file)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def evaluate(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, int], dict[str, Any]]:
    """Runs so many questions of all tasks with a model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lambda model, num_items: simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True, limit=num_items
    )


@pytest.mark.parametrize(("save", "num_items"), [(save_tiny_folder, NUM_ITEMS), (save_hybrid, 20)])
def test_tasks_have_the_same_metrics_as_with_transformers(
    save: Callable[[Path], Path], num_items: int, tmp_path: Path, evaluate: Callable[[Any, int], dict[str, Any]]
) -> None:
    from lm_eval.models.huggingface import HFLM

    from runtime.scoring.harness import OverstoryLM

    folder = save(tmp_path / "model")
    theirs = evaluate(HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8), num_items)
    with OverstoryLM(str(folder), draft="none", device="cpu") as model:
        ours = evaluate(model, num_items)
    assert ours["results"].keys() == theirs["results"].keys() == TASKS.keys()
    for name, metrics in theirs["results"].items():
        for metric, value in metrics.items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert ours["results"][name][metric] == expected, (name, metric)
    scores = [sample for name in TASKS for sample in zip(ours["samples"][name], theirs["samples"][name], strict=True)]
    assert len(scores) == 3 * num_items
    for found, wanted in scores:
        assert found["doc_id"] == wanted["doc_id"]
        for response, expected in zip(found["resps"], wanted["resps"], strict=True):
            if isinstance(expected[0], str):
                assert response == expected
            else:
                assert response[0] == pytest.approx(expected[0], abs=1e-4)


def test_its_own_command_line_knows_our_name(tmp_path: Path, tasks: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    command = [sys.executable, "-m", "runtime.scoring.harness", "run", "--model", "overstory"]
    command += ["--model_args", f"pretrained={folder},draft=none", "--tasks", "tiny_choice"]
    command += ["--include_path", str(tasks), "--limit", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "tiny_choice" in done.stdout and "acc_norm" in done.stdout
