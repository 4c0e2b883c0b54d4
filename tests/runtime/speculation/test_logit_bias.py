"""A bias is added to every row before penalties; trees then write what plain decoding writes."""

from pathlib import Path

import numpy as np
import pytest

from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.logit_bias import BiasedRows
from runtime.speculation.logit_processors import LogitProcessor
from tests.support.session_factory import open_tiny, save_target_and_drafts

PENALTIES = SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, banned_tokens=(5,))


def test_penalties_see_the_row_with_its_bias() -> None:
    row = np.linspace(-2, 3, 12, dtype=np.float32)
    processor = LogitProcessor(PENALTIES, prompt=[1, 9], vocab_size=12)
    biased = BiasedRows(processor, [(9, -4.5), (3, 2.0)], vocab_size=12)
    before = row.copy()
    expected = row.copy()
    expected[9] -= 4.5
    expected[3] += 2
    assert np.array_equal(biased.adjusted(row, [3, 3]), processor.adjusted(expected, [3, 3]))
    assert np.array_equal(row, before), "the row itself is left alone"
    with pytest.raises(OptionError, match="logit_bias names the token 12; the model's ids are 0 to 11"):
        BiasedRows(processor, [(12, 1.0)], vocab_size=12)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_trees_write_the_text_of_plain_decoding_and_the_bias_moves_it(tmp_path: Path, temperature: float) -> None:
    folders = save_target_and_drafts(tmp_path)

    def texts(draft: Path | str, bias: tuple[tuple[int, float], ...], **changes: float) -> list[str]:
        params = SamplingParams(temperature=temperature, max_new_tokens=24, seed=3, **changes)
        asked = PromptRequest(id="1", prompt="the cat and the dog", params=params, logit_bias=bias)
        with open_tiny(folders["target"], draft=draft, tree="9x4" if draft != "none" else "auto") as opened:
            return [list(opened.session.generate(asked))[-1].text]

    bias = ((2, -100.0), (20, 3.0), (31, -2.5), (40, 1.0))
    plain = texts("none", bias, repetition_penalty=1.2)
    assert texts(folders["unrelated"], bias, repetition_penalty=1.2) == plain
    assert texts(folders["perfect"], bias, repetition_penalty=1.2) == plain
    assert texts("none", (), repetition_penalty=1.2) != plain
    assert texts(folders["unrelated"], ((2, 100.0),)) == [""], "the end token, which is the only one left"
