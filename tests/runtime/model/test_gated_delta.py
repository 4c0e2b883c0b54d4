"""Trees behind a state against the recurrence token by token, in float64 and as transformers computes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from runtime.model import gated_delta
from runtime.model.gated_delta import Paths, convolve, delta_chain, delta_rule

INPUTS = ("query", "key", "value", "log_decay", "beta")


def random_tree(generator, num_tokens, *, chance_of_chain=0.5):
    """Parents (R,), -1 for those that stand on the state, each before its children."""
    parents = []
    for token in range(num_tokens):
        is_chain = torch.rand((), generator=generator) < chance_of_chain
        parents.append(
            token - 1 if is_chain else int(torch.randint(-1, token, (), generator=generator)) if token else -1
        )
    return parents


def ancestors_of(parents):
    seen = torch.eye(len(parents), dtype=torch.bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            seen[token] |= seen[parent]
    return seen


def path_to(parents, token):
    path = []
    while token >= 0:
        path.append(token)
        token = parents[token]
    return path[::-1]


def layer_inputs(generator, num_tokens, *, heads=(2, 4), widths=(8, 6), decay=1.0, most_beta=1.0):
    num_key_heads, num_heads = heads

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "query": normal(num_tokens, num_key_heads, widths[0]),
        "key": normal(num_tokens, num_key_heads, widths[0]),
        "value": normal(num_tokens, num_heads, widths[1]),
        "log_decay": -decay * torch.rand(num_tokens, num_heads, generator=generator),
        "beta": most_beta * torch.rand(num_tokens, num_heads, generator=generator),
    }, normal(num_heads, *widths)


def stepped(inputs, state, path):
    """What the last token of a path reads, and the state behind it: token by token, in float64."""
    state = state.double()
    repeats = inputs["value"].shape[1] // inputs["key"].shape[1]
    for token in path:
        query, key = (
            torch.nn.functional.normalize(inputs[name][token].double(), dim=-1).repeat_interleave(repeats, 0)
            for name in ("query", "key")
        )
        state = state * inputs["log_decay"][token].double().exp()[:, None, None]
        found = torch.einsum("hk,hkv->hv", key, state)
        written = inputs["beta"][token].double()[:, None] * (inputs["value"][token].double() - found)
        state = state + key[:, :, None] * written[:, None]
        read = torch.einsum("hk,hkv->hv", query, state) * query.shape[-1] ** -0.5
    return read, state


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_tokens=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (2, 4), (1, 3), (3, 3)]),
    decay=st.sampled_from([0.0, 1e-4, 1.0, 16.0, 60.0]),
    most_beta=st.sampled_from([1.0, 2.0]),
    chance_of_chain=st.sampled_from([0.0, 0.5, 0.95]),
)
def test_each_token_reads_the_state_of_its_own_path(seed, num_tokens, heads, decay, most_beta, chance_of_chain):
    generator = torch.Generator().manual_seed(seed)
    parents = random_tree(generator, num_tokens, chance_of_chain=chance_of_chain)
    inputs, state = layer_inputs(generator, num_tokens, heads=heads, decay=decay, most_beta=most_beta)
    found = delta_rule(*(inputs[name] for name in INPUTS), state, Paths(ancestors_of(parents)))
    expected = torch.stack([stepped(inputs, state, path_to(parents, token))[0] for token in range(num_tokens)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3, 40.0])
@pytest.mark.parametrize("num_outputs", [1, 70, 150])
def test_a_tree_of_several_blocks_is_its_paths(num_outputs, decay):
    """Also where nothing is left of a number after some tokens."""
    generator = torch.Generator().manual_seed(num_outputs)
    parents = random_tree(generator, 150, chance_of_chain=0.9)
    inputs, state = layer_inputs(generator, 150, heads=(2, 6), decay=decay)
    arguments = (*(inputs[name] for name in INPUTS), state, Paths(ancestors_of(parents)))
    found = delta_rule(*arguments, num_outputs=num_outputs)
    assert len(found) == num_outputs
    for token in range(150 - num_outputs, 150, 13):
        expected, _ = stepped(inputs, state, path_to(parents, token))
        torch.testing.assert_close(found[token - 150].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_path_reads_what_transformers_computes_of_it_alone():
    generator = torch.Generator().manual_seed(5)
    parents = random_tree(generator, 60)
    inputs, state = layer_inputs(generator, 60, heads=(4, 8), widths=(16, 32), decay=4.0)
    found = delta_rule(*(inputs[name] for name in INPUTS), state, Paths(ancestors_of(parents)))
    for leaf in set(range(60)) - set(parents):
        path = path_to(parents, leaf)
        query, key, value, log_decay, beta = (inputs[name][path][None] for name in INPUTS)
        expected, _ = torch_recurrent_gated_delta_rule(
            query,
            key,
            value,
            g=log_decay,
            beta=beta,
            initial_state=state[None],
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        torch.testing.assert_close(found[path], expected[0], rtol=1e-5, atol=1e-5)


def test_the_last_tokens_alone_and_few_heads_at_a_time_are_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(6)
    inputs, state = layer_inputs(generator, 30, heads=(3, 6))
    arguments = (*(inputs[name] for name in INPUTS), state, Paths(ancestors_of(random_tree(generator, 30))))
    whole = delta_rule(*arguments)
    torch.testing.assert_close(delta_rule(*arguments, num_outputs=7), whole[-7:])
    monkeypatch.setattr(gated_delta, "MOST_DELTA_PAIRS", 2 * 30 * 30)
    torch.testing.assert_close(delta_rule(*arguments), whole)


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 200])
def test_a_text_goes_on_from_the_state_that_its_blocks_leave(num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    inputs, state = layer_inputs(generator, num_tokens, decay=3.0)
    outputs, behind = delta_chain(*(inputs[name] for name in INPUTS), state)
    read, expected = stepped(inputs, state, range(num_tokens))
    torch.testing.assert_close(outputs[-1].double(), read, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(behind.double(), expected, rtol=1e-5, atol=1e-5)
    cut = {name: states[: num_tokens // 2] for name, states in inputs.items()}
    rest = {name: states[num_tokens // 2 :] for name, states in inputs.items()}
    _, half = delta_chain(*(cut[name] for name in INPUTS), state)
    later, _ = delta_chain(*(rest[name] for name in INPUTS), half)
    torch.testing.assert_close(later, outputs[num_tokens // 2 :], rtol=1e-5, atol=1e-5)


def test_the_state_does_not_drift_over_two_thousand_tokens():
    """Gates that hold for long: in float32 the state stays where float64 has it."""
    generator = torch.Generator().manual_seed(9)
    inputs, state = layer_inputs(generator, 2000, decay=0.01)
    new = state
    for start in range(0, 2000, 7):  # as accepted paths come
        rows = {name: states[start : start + 7] for name, states in inputs.items()}
        _, new = delta_chain(*(rows[name] for name in INPUTS), new)
    _, expected = stepped(inputs, state, range(2000))
    assert (new.double() - expected).abs().max() < 1e-6 * expected.abs().max()


def test_strong_and_weak_gates_on_one_path_keep_their_digits():
    """Sums of -16 a token, whose differences in float32 would lose the gates that follow."""
    generator = torch.Generator().manual_seed(3)
    inputs, state = layer_inputs(generator, 60, decay=1e-3)
    inputs["log_decay"][:50] = -16.0
    found = delta_rule(*(inputs[name] for name in INPUTS), state, Paths(ancestors_of(list(range(-1, 59)))))
    expected = stepped(inputs, state, range(60))[0]
    torch.testing.assert_close(found[-1].double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_convolution_sees_the_last_tokens_of_each_path(width):
    generator = torch.Generator().manual_seed(width)
    parents = random_tree(generator, 25)
    before, rows = (torch.randn(num, 3, generator=generator) for num in (width - 1, 25))
    weight, bias = torch.randn(3, width, generator=generator), torch.randn(3, generator=generator)
    inputs = torch.cat([before, rows])
    windows = Paths(ancestors_of(parents)).windows(width)
    found = convolve(inputs, weight, bias, windows)
    for token in range(25):
        seen = torch.cat([before, rows[path_to(parents, token)]])[-width:]
        torch.testing.assert_close(found[token], (seen * weight.T).sum(0) + bias)
    chain = Paths(ancestors_of(list(range(-1, 24)))).windows(width)
    torch.testing.assert_close(convolve(inputs, weight, None, chain), convolve(inputs, weight, None))
