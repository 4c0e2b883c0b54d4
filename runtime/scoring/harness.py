"""Registers the target with lm-evaluation-harness (extra `eval`) under the name `overstory`.

lm_eval 0.4 finds models in its own package alone, beside those that were imported before it looks: `python -m
runtime.scoring.harness run --model overstory ...` is its own command line with this one imported.
"""

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from runtime.scoring.evaluation import EvaluatedModel


@register_model("overstory")
class OverstoryLM(EvaluatedModel, LM):  # type: ignore[misc]
    """What lm_eval calls a model; see `EvaluatedModel`, whose arguments are those of `--model_args`."""


if __name__ == "__main__":
    cli_evaluate()
