"""Penalties, bans and forced tokens against transformers, against the formulas, and inside verified trees."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.speculation.logit_processors import LogitProcessor, TextRules
from runtime.speculation.sampling import logits_to_probs, top_tokens
from runtime.speculation.schemes import AdjustedRows, Children, Greedy, Place, scheme_for
from runtime.speculation.thinking import ThinkingRules
from runtime.speculation.token_tree import TokenTree
from runtime.speculation.verifier import verify
from tests.support.chi_square import chi_square_p_value
from tests.support.trees import tree_of_counts

VOCAB_SIZE = 60
PROMPT, ANSWER, PATH = [3, 3, 7, 50, 8], [7, 7, 21, 3], [21, 9, 9, 7]

EVERYTHING = SamplingParams(
    repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=-0.25, banned_tokens=(5, 9), forced_tokens=(7, 7)
)


def processor_of(
    choices: SamplingParams,
    *,
    prompt: Sequence[int] = PROMPT,
    answer: Sequence[int] = (),
    vocab_size: int = VOCAB_SIZE,
    rules: TextRules | None = None,
) -> LogitProcessor:
    processor = LogitProcessor(choices, prompt=prompt, vocab_size=vocab_size, rules=rules)
    processor.accept(answer)
    return processor


def random_row(seed: int = 0, size: int = VOCAB_SIZE) -> np.ndarray:
    row = (4 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)
    row[-3:] = -np.inf  # tokens that a draft does not know
    return row


def by_the_formulas(
    row: np.ndarray, choices: SamplingParams, *, prompt: Sequence[int], answer: Sequence[int]
) -> np.ndarray:
    """Token by token, straight from the definitions; `answer` includes the path."""
    if len(answer) < len(choices.forced_tokens):
        only = choices.forced_tokens[len(answer)]
        return np.array([0.0 if token == only else -np.inf for token in range(len(row))])
    result = []
    for token, found in enumerate(row.tolist()):
        logit = found
        if token in prompt or token in answer:
            penalty = choices.repetition_penalty
            logit = logit / penalty if logit > 0 else logit * penalty
        logit -= choices.frequency_penalty * list(answer).count(token)
        logit -= choices.presence_penalty if token in answer else 0
        result.append(-np.inf if token in choices.banned_tokens else logit)
    return np.array(result)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    for seed in range(20):
        row = random_row(seed)
        expected = RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor([PROMPT + ANSWER + PATH]), torch.from_numpy(row)[None]
        )[0]
        processor = processor_of(SamplingParams(repetition_penalty=penalty), answer=ANSWER)
        np.testing.assert_array_equal(processor.adjusted(row, PATH), expected.numpy())


@pytest.mark.parametrize(
    "choices",
    [
        SamplingParams(presence_penalty=0.8),
        SamplingParams(frequency_penalty=0.3),
        SamplingParams(frequency_penalty=-1.5, presence_penalty=2),
        SamplingParams(repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=-0.5),
        SamplingParams(banned_tokens=(0, 7, 7, 59)),
        EVERYTHING,
    ],
)
@pytest.mark.parametrize(("answer", "path"), [([], []), ([], PATH), (ANSWER, []), (ANSWER, PATH), ([7], []), ([], [7])])
def test_rows_follow_the_formulas(choices: SamplingParams, answer: list[int], path: list[int]) -> None:
    row = random_row(1)
    found = processor_of(choices, answer=answer).adjusted(row, path)
    np.testing.assert_allclose(found, by_the_formulas(row, choices, prompt=PROMPT, answer=answer + path), rtol=1e-6)


def test_words_of_the_question_cost_nothing_in_presence_and_frequency() -> None:
    choices = SamplingParams(presence_penalty=1, frequency_penalty=1)
    changed = processor_of(choices, answer=[21]).adjusted(random_row()) != random_row()
    assert np.flatnonzero(changed).tolist() == [21]


@pytest.mark.parametrize("num_accepted", range(len(PATH) + 1))
def test_a_path_counts_as_it_will_once_it_is_accepted(num_accepted: int) -> None:
    """To the last bit: a row that changed when its path became text would make speculation visible in the answer."""
    choices = SamplingParams(repetition_penalty=1.1, presence_penalty=0.37, frequency_penalty=0.113)
    row = random_row(2)
    processor = processor_of(choices, answer=ANSWER)
    drafted = processor.adjusted(row, PATH)
    processor.adjusted(row, [1, 2, 3])  # another branch leaves no trace
    processor.accept(PATH[:num_accepted])
    np.testing.assert_array_equal(processor.adjusted(row, PATH[num_accepted:]), drafted)


THINKING = ThinkingRules(begin=((50,),), end=((51,), (52,)), budget=3)


def test_the_end_of_thinking_overrules_everything_but_tokens_that_are_asked_for_by_name() -> None:
    rules = TextRules(last_tokens=(4,), banned_tokens=(51,), end_token_ids=(2,), min_new_tokens=3)
    choices = SamplingParams(forced_tokens=(50, 1, 1, 1, 3), max_new_tokens=6, banned_tokens=(52,))
    processor = LogitProcessor(choices, prompt=PROMPT, vocab_size=VOCAB_SIZE, rules=rules, thinking=THINKING)
    row, path = random_row(), [50, 1, 1, 1, 3]
    for length, only in ((4, 3), (5, 51)):
        adjusted = processor.adjusted(row, path[:length])
        assert np.flatnonzero(np.isfinite(adjusted)).tolist() == [only]
        assert processor.changes([path[:length]]) is None
    assert top_tokens(processor.adjusted(row, [*path, 51]), 1).tolist() == [52]


def test_what_is_bound_to_follow_is_told_with_the_end_of_thinking() -> None:
    choices = SamplingParams(forced_tokens=(50, 1, 1))
    processor = LogitProcessor(choices, prompt=PROMPT, vocab_size=VOCAB_SIZE, thinking=THINKING)
    assert processor.forced(max_tokens=9) == (50, 1, 1)
    assert processor.forced([50, 1], max_tokens=9) == (1,)
    assert processor.forced([50, 1, 1, 1], max_tokens=9) == (51, 52)
    assert processor.forced([50, 1, 1, 1], max_tokens=1) == (51,)
    processor.accept([50, 1, 1, 1, 51])
    assert processor.forced(max_tokens=9) == (52,)
    assert processor.forced([52], max_tokens=9) == ()


def test_rows_before_and_behind_thinking_are_those_without_a_budget() -> None:
    for choices in (SamplingParams(), SamplingParams(repetition_penalty=1.3, banned_tokens=(5,))):
        limited, free = (
            LogitProcessor(choices, prompt=PROMPT, vocab_size=VOCAB_SIZE, thinking=thinking)
            for thinking in (THINKING, None)
        )
        assert not limited.is_idle
        for path in ([], [1, 1, 1, 1], [50], [50, 1], [50, 1, 51, 52, 1, 1], [50, 1, 1, 1, 51, 52]):
            np.testing.assert_array_equal(limited.adjusted(random_row(), path), free.adjusted(random_row(), path))
            assert limited.changes([path]) is not None
    assert processor_of(SamplingParams()).is_idle
    unlimited = replace(THINKING, budget=None)
    assert LogitProcessor(SamplingParams(), prompt=PROMPT, vocab_size=VOCAB_SIZE, thinking=unlimited).is_idle


def test_a_row_without_changes_is_returned_and_others_are_copied() -> None:
    row = random_row()
    assert processor_of(SamplingParams()).is_idle
    assert processor_of(SamplingParams(), answer=ANSWER).adjusted(row, PATH) is row
    counting = processor_of(SamplingParams(frequency_penalty=1))
    assert not counting.is_idle
    assert counting.adjusted(row) is row
    before = row.copy()
    for processor, path in ((counting, PATH), (processor_of(EVERYTHING), ())):
        changed = processor.adjusted(row, path)
        assert changed is not row and changed.dtype == np.float32
        np.testing.assert_array_equal(row, before)


def test_forced_tokens_stand_at_their_positions_and_then_end() -> None:
    processor = processor_of(SamplingParams(forced_tokens=(4, 59, 4)), answer=[4])
    assert top_tokens(processor.adjusted(random_row()), 1).tolist() == [59], "also a token the draft does not know"
    probs = logits_to_probs(processor.adjusted(random_row(), [59]), SamplingParams(temperature=1.5))
    assert np.flatnonzero(probs).tolist() == [4]
    row = random_row()
    assert processor.adjusted(row, [59, 4]) is row


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (SamplingParams(banned_tokens=(60,)), "banned_tokens holds 60; the model's ids are 0 to 59"),
        (SamplingParams(forced_tokens=(1, 61)), "forced_tokens holds 61; the model's ids are 0 to 59"),
        (
            SamplingParams(banned_tokens=(*range(60), 3)),
            "banned_tokens holds all 60 ids of the model; leave at least one out",
        ),
        (
            SamplingParams(banned_tokens=(1, 2), forced_tokens=(3, 2)),
            "forced_tokens holds 2, which is banned as well; remove it from one",
        ),
    ],
)
def test_impossible_tokens_are_refused(choices: SamplingParams, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        processor_of(choices)
    assert str(caught.value) == message


def test_all_but_one_token_may_be_banned() -> None:
    row = processor_of(SamplingParams(banned_tokens=tuple(range(1, 60)))).adjusted(random_row())
    assert np.flatnonzero(logits_to_probs(row, SamplingParams(temperature=1))).tolist() == [0]


def by_transformers(
    row: np.ndarray, rules: TextRules, params: SamplingParams, *, prompt: Sequence[int], answer: Sequence[int]
) -> np.ndarray:
    """The row after transformers' own processors, in the order in which generate() has them."""
    limit, first = len(prompt) + params.max_new_tokens, rules.first_token
    begin = len(prompt) + (first is not None)
    ends = [*rules.end_token_ids]
    chosen: list[tuple[object, Callable[[], LogitsProcessor]]] = [
        (params.repetition_penalty != 1, lambda: RepetitionPenaltyLogitsProcessor(params.repetition_penalty)),
        (rules.no_repeat_ngram_size, lambda: NoRepeatNGramLogitsProcessor(rules.no_repeat_ngram_size)),
        (rules.banned_sequences, lambda: NoBadWordsLogitsProcessor([[*word] for word in rules.banned_sequences])),
        (
            rules.min_new_tokens,
            lambda: MinNewTokensLengthLogitsProcessor(len(prompt), rules.min_new_tokens, torch.tensor(ends)),
        ),
        (first is not None, lambda: ForcedBOSTokenLogitsProcessor(first or 0)),
        (rules.last_tokens, lambda: ForcedEOSTokenLogitsProcessor(limit, [*rules.last_tokens])),
        (rules.banned_tokens, lambda: SuppressTokensLogitsProcessor(rules.banned_tokens)),
        (
            rules.banned_first_tokens,
            lambda: SuppressTokensAtBeginLogitsProcessor(rules.banned_first_tokens, begin),
        ),
    ]
    scores, text = torch.from_numpy(row)[None].clone(), torch.tensor([[*prompt, *answer]])
    for is_chosen, make in chosen:
        scores = make()(text, scores) if is_chosen else scores
    return scores[0].numpy()


def random_rules(rng: np.random.Generator, *, prompt: Sequence[int]) -> TextRules:
    """Rules, each of them on in about half of all cases, about few tokens so that they meet the text."""

    def some(most: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 10, size=int(rng.integers(0, most + 1))).tolist())

    return TextRules(
        no_repeat_ngram_size=int(rng.choice([0, 0, 1, 2, 3, 30])),
        banned_sequences=tuple(filter(None, (some(3) for _ in range(int(rng.choice([0, 6])))))),
        banned_tokens=some(4),
        banned_first_tokens=some(3),
        min_new_tokens=int(rng.choice([0, 0, 4])),
        end_token_ids=(2, 9),
        first_token=6 if len(prompt) == 1 else None,
        last_tokens=tuple(rng.choice(10, size=int(rng.choice([0, 0, 1, 2])), replace=False).tolist()),
    )


def test_rules_are_those_of_transformers_and_count_a_path_as_text() -> None:
    """300 random texts of few tokens, cut anywhere into prompt, accepted answer and path of a tree."""
    rng = np.random.default_rng(5)
    for seed in range(300):
        text = rng.integers(0, 10, size=int(rng.integers(1, 14))).tolist()
        num_prompt, num_text = sorted(rng.integers(1, len(text) + 1, size=2).tolist())
        prompt, answer, path = text[:num_prompt], text[num_prompt:num_text], text[num_text:]
        rules = random_rules(rng, prompt=prompt)
        params = SamplingParams(repetition_penalty=float(rng.choice([1, 1.2])), max_new_tokens=6)
        expected = by_transformers(random_row(seed), rules, params, prompt=prompt, answer=answer + path)
        processor = processor_of(params, prompt=prompt, answer=answer, rules=rules)
        np.testing.assert_array_equal(processor.adjusted(random_row(seed), path), expected, err_msg=f"{rules} {text}")


def test_rules_that_concern_another_place_leave_a_row_alone() -> None:
    rules = TextRules(banned_first_tokens=(1,), min_new_tokens=2, end_token_ids=(2,), last_tokens=(2,))
    processor, row = processor_of(SamplingParams(max_new_tokens=9), rules=rules), random_row()
    assert not processor.is_idle and processor_of(SamplingParams(), rules=TextRules(end_token_ids=(2,))).is_idle
    changed = [place for place in range(9) if processor.adjusted(row, [5] * place) is not row]
    assert changed == [0, 1, 8]


def test_a_token_that_is_asked_for_by_name_overrules_the_rules() -> None:
    rules = TextRules(banned_tokens=(4,), first_token=6, last_tokens=(7,), no_repeat_ngram_size=1)
    processor = processor_of(SamplingParams(forced_tokens=(4, 4)), prompt=[4], rules=rules)
    assert top_tokens(processor.adjusted(random_row(), [4]), 1).tolist() == [4]


def test_where_nothing_may_follow_the_draft_goes_on_and_the_target_says_so() -> None:
    rules = TextRules(no_repeat_ngram_size=1)
    scheme = AdjustedRows(Greedy(), processor_of(SamplingParams(), prompt=range(5), vocab_size=5, rules=rules))
    row, rng, place = np.arange(5, dtype=np.float32), np.random.default_rng(0), Place(SamplingParams(), 5)
    assert scheme.place(row, 2, place, rng).token_ids.tolist() == [4, 3]
    assert scheme.rank(row, 2, place).token_ids.tolist() == [4, 3]
    with pytest.raises(
        OptionError, match="leaves no token of the model; ban or forbid less, or give --generation plain"
    ):
        scheme.judge(Children(np.empty(0, dtype=np.int64)), row, place, rng)


SMALL_VOCAB, SMALL_PROMPT = 5, (2, 0)
SMALL_CHOICES = SamplingParams(repetition_penalty=1.6, presence_penalty=0.9, frequency_penalty=1.2, banned_tokens=(3,))
SMALL_RULES = TextRules(
    no_repeat_ngram_size=2, banned_sequences=((0, 1), (4, 2, 1)), banned_first_tokens=(3,), last_tokens=(1, 4)
)


@cache
def raw_row(text: tuple[int, ...], model: int) -> np.ndarray:
    rng = np.random.default_rng([model, len(text), *text])
    return (1.5 * rng.standard_normal(SMALL_VOCAB)).astype(np.float32)


def answer_with_trees(
    choices: SamplingParams,
    params: SamplingParams,
    *,
    num_tokens: int,
    rng: np.random.Generator,
    rules: TextRules | None = None,
) -> tuple[int, ...]:
    """Rounds of draft and verification over a small tree, both adjusted on each node's own path."""
    topology = tree_of_counts([2, 2, 1, 1, 0, 0, 0])
    processor = LogitProcessor(choices, prompt=SMALL_PROMPT, vocab_size=SMALL_VOCAB, rules=rules)
    scheme = AdjustedRows(scheme_for(params), processor)
    text = list(SMALL_PROMPT)
    while len(text) < len(SMALL_PROMPT) + num_tokens:
        tree = TokenTree.rooted(topology, root_token_id=text[-1], root_position=len(text) - 1)

        def row(node: int, model: int, tree: TokenTree = tree, text: tuple[int, ...] = tuple(text)) -> np.ndarray:
            return raw_row((*text, *tree.path_token_ids(node)[1:].tolist()), model)

        for node in np.flatnonzero(topology.num_children).tolist():
            width = int(topology.num_children[node])
            placed = scheme.place(row(node, 1), width, Place.below(tree, node, params), rng)
            tree.set_children(node, token_ids=placed.token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)
        emitted = verify(tree, lambda node: row(node, 0), params, rng, scheme=scheme).emitted_token_ids(tree)
        processor.accept(emitted)
        text += emitted
    return tuple(text[len(SMALL_PROMPT) :][:num_tokens])


def plain_row(answer: tuple[int, ...], choices: SamplingParams) -> np.ndarray:
    row = raw_row((*SMALL_PROMPT, *answer), 0)
    return by_the_formulas(row, choices, prompt=SMALL_PROMPT, answer=answer)


def ruled_row(answer: tuple[int, ...], choices: SamplingParams) -> np.ndarray:
    row = raw_row((*SMALL_PROMPT, *answer), 0)
    return by_transformers(row, SMALL_RULES, choices, prompt=SMALL_PROMPT, answer=answer)


def test_greedy_trees_write_the_text_of_plain_decoding() -> None:
    for penalty in (0.5, 1.0, 1.6, 3.0):
        choices = SamplingParams(repetition_penalty=penalty, frequency_penalty=0.4, forced_tokens=(1, 1))
        expected: tuple[int, ...] = ()
        for _ in range(40):
            expected += (int(plain_row(expected, choices).argmax()),)
        found = answer_with_trees(choices, SamplingParams(), num_tokens=40, rng=np.random.default_rng(0))
        assert found == expected


def test_sampled_trees_have_the_distribution_of_plain_decoding() -> None:
    """Seed 4, 1500 answers of three tokens over several rounds, p-value above 0.001."""
    choices = replace(SMALL_CHOICES, temperature=1, verification="sequoia")
    assert_distributed_as_plain(choices, plain_row, num_answers=1500, seed=4)


@pytest.mark.parametrize("verification", ["sequoia", "coupled", "specinfer", "top-k"])
def test_sampled_trees_under_rules_have_the_distribution_of_plain_decoding(verification: str) -> None:
    """Seed 5, 1500 answers of three tokens, of which the last is one of two, p-value above 0.001."""
    choices = SamplingParams(temperature=1, repetition_penalty=1.2, max_new_tokens=3, verification=verification)
    assert_distributed_as_plain(choices, ruled_row, num_answers=1500, seed=5, rules=SMALL_RULES)


def assert_distributed_as_plain(
    choices: SamplingParams,
    plain: Callable[[tuple[int, ...], SamplingParams], np.ndarray],
    *,
    num_answers: int,
    seed: int,
    rules: TextRules | None = None,
) -> None:
    rng = np.random.default_rng(seed)
    seen = Counter(
        answer_with_trees(choices, replace(choices, seed=number), num_tokens=3, rng=rng, rules=rules)
        for number in range(num_answers)
    )
    answers = list(itertools.product(range(SMALL_VOCAB), repeat=3))

    @cache
    def probs(text: tuple[int, ...]) -> np.ndarray:
        row = plain(text, choices)
        return logits_to_probs(row, choices) if row.max() > -np.inf else np.zeros(SMALL_VOCAB)

    expected = [num_answers * np.prod([probs(text[:i])[text[i]] for i in range(3)]) for text in answers]
    assert chi_square_p_value([seen[answer] for answer in answers], expected) > 1e-3
