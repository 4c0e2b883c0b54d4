from runtime.engine.token_sequence import TokenSequence


def test_only_what_stands_before_a_prompts_last_token_is_shared() -> None:
    """The last token is always computed, since its row says what follows."""
    sequence = TokenSequence(0, text=[1, 2, 3, 4], num_committed=2)
    assert [sequence.num_shared(prompt) for prompt in ([1, 2, 9, 9], [1, 2, 3, 4], [1, 2, 3, 4, 5], [2], [1])] == [
        2,
        3,
        4,
        0,
        0,
    ]
    assert sequence.num_pending == 2
