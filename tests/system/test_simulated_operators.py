"""On the simulated device, operators and whole models compute what they compute on the CPU."""

import copy
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from offload.formats.eight_bit import EightBitFormat
from offload.formats.integer_groups import AwqFormat, GptqFormat
from offload.formats.microscaled import MicroscaledFormat
from offload.formats.weight_format import WidenedFormat
from runtime.model.attention import additive_mask, grouped_attention
from tests.support import model_factory
from tests.support import simulated_device as sim
from tests.support.published_weights import awq, float8, gptq, nvfp4
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__)
check = CHECKS.check


# ------------------------------------------------------------------------------------------------------------ operators


def agree(compute: Callable[..., object], *arguments: torch.Tensor, tolerance: float = 1e-5) -> None:
    """`compute` gives the same on both devices, dtypes and shapes included, and leaves its arguments the same."""
    on_sim = [argument.to("sim:0") for argument in arguments]
    expected = compute(*(copies := [argument.clone() for argument in arguments]))
    found = compute(*on_sim)
    results = zip(found, expected, strict=True) if isinstance(expected, list | tuple) else [(found, expected)]
    for ours, theirs in [*results, *zip(on_sim, copies, strict=True)]:
        assert isinstance(ours, torch.Tensor)
        assert ours.device == torch.device("sim:0")
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


@check
def views_share_their_bytes() -> None:
    base = torch.zeros(4, 6, device="sim:0")
    views = {
        "slice": base[1:3, ::2],
        "transpose": base.t(),
        "view": base.view(2, 12),
        "reshape": base.reshape(-1),
        "expand": base[0].expand(3, 6),
        "unsqueeze": base.unsqueeze(0),
        "permute": base.permute(1, 0),
        "as_strided": base.as_strided((2, 2), (1, 6), 3),
        "unfold": base.unfold(1, 2, 2),
        "dtype": base.view(torch.int32),
        "narrower dtype": base.view(torch.uint8),
        "detach": base.detach(),
        "diagonal": base.diagonal(),
        "chunk": base.chunk(2, dim=1)[1],
        "real": torch.view_as_complex(base.view(4, 3, 2)),
    }
    base.fill_(1)
    for name, view in views.items():
        ones = torch.ones(1).view(view.dtype) if not view.is_complex() and view.dtype != torch.uint8 else None
        assert view.cpu().ne(0).any(), name
        assert ones is None or view.cpu().eq(ones).all(), name
    base[1:3, ::2].mul_(5)
    base.view(2, 12)[0, :2].add_(torch.tensor([1.0, 2.0], device="sim:0"))
    expected = torch.ones(4, 6)
    expected[1:3, ::2] *= 5
    expected[0, 0] += 1
    expected[0, 1] += 2
    assert base.cpu().equal(expected)


@check
def arguments_that_overlap_are_refused() -> None:
    base = torch.arange(4.0, device="sim:0")
    with pytest.raises(RuntimeError, match="single memory location"):
        base.index_put_((torch.tensor([1, 2], device="sim:0"),), base[:2])


@check
def operators_agree_with_the_cpu() -> None:
    torch.manual_seed(1)
    x, y, index = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.tensor([2, 0, 1])
    table, weight = torch.randn(10, 8), torch.rand(8)
    mask = torch.rand(3, 4, 8) > 0.5
    agree(torch.add, x, y)
    agree(lambda a: a.mul_(2).add_(1), x)
    agree(lambda a, b: torch.cat([a, b], dim=1), x, y)
    agree(lambda a, b: torch.add(a, b, out=torch.empty(0, device=a.device)), x, y)
    agree(lambda a, b: torch.where(a > 0, a, b), x, y)
    agree(lambda a, m: a.masked_fill_(m, float("-inf")), x, mask)
    agree(lambda a, m: a[m], x, mask)
    agree(lambda a, i: a.index_select(0, i), x, index)
    agree(lambda a, i: a[i, i], x, index)
    agree(lambda a, i: a.index_put_((i,), torch.ones(8, device=a.device)), x[0], index)
    agree(lambda a, i: a.index_copy_(0, i, a.flip(0)), x, index)
    agree(lambda a, i: a.scatter_(1, i.view(-1, 1, 1), 0.0), x, index)
    agree(lambda a, i: a.gather(0, i.view(3, 1, 1).expand(3, 4, 8)), x, index)
    agree(F.embedding, index, table)
    agree(lambda a: torch.topk(a, 3), x)
    agree(lambda a: a.sort(dim=-1, descending=True), x)
    agree(torch.argmax, x)
    agree(lambda a: a.split([1, 3], dim=1), x)
    agree(lambda a: a.cumsum(-1).softmax(-1).log(), x)
    agree(lambda a: a.float().pow(2).mean(-1, keepdim=True).rsqrt(), x)
    agree(lambda a: torch.tril(torch.ones(5, 5, device=a.device)), x)
    agree(lambda a: torch.arange(3, 9, 2, device=a.device).cos(), x)
    agree(lambda a, w: F.layer_norm(a, (8,), w), x, weight)
    agree(lambda a, w: F.linear(F.silu(a), w), x, table)
    agree(lambda a, b: a @ b.transpose(1, 2), x, y)
    agree(lambda a: a.to(torch.bfloat16), x)
    agree(lambda a: a.repeat_interleave(2, dim=1), x)
    agree(lambda a: a.to(torch.int8).to(torch.float32), x)


@check
def attention_agrees_with_the_cpu() -> None:
    torch.manual_seed(2)
    query, key, value = torch.randn(1, 4, 6, 8), torch.randn(1, 4, 6, 8), torch.randn(1, 4, 6, 8)
    few = torch.randn(1, 2, 6, 8)
    float_mask = torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        q, k, v, g, m = (tensor.to(dtype) for tensor in (query, key, value, few, float_mask))
        agree(F.scaled_dot_product_attention, q, k, v, tolerance=tolerance)
        agree(partial(F.scaled_dot_product_attention, is_causal=True), q, k, v, tolerance=tolerance)
        agree(F.scaled_dot_product_attention, q, k, v, m, tolerance=tolerance)
        agree(F.scaled_dot_product_attention, q, k, v, m == 0, tolerance=tolerance)
        agree(partial(F.scaled_dot_product_attention, enable_gqa=True), q, g, g, tolerance=tolerance)


@check
def grouped_attention_takes_no_memory_of_the_size_of_its_keys() -> None:
    """32 heads on 4, 4,096 keys: copies of keys and values would be eight times the cache of the layer, 17 MB each."""
    query = torch.randn(1, 16, 32, 64, device="sim:0").transpose(1, 2)
    key, value = torch.randn(2, 1, 4, 4113, 64, device="sim:0")[:, :, :, :4096]
    mask = additive_mask(torch.rand(16, 4096, device="sim:0") > 0.5, torch.float32)
    module = torch.nn.Module()
    module.num_key_value_groups = 8  # type: ignore[assignment]
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    found, _ = grouped_attention(module, query, key, value, mask)
    num_bytes = torch.accelerator.max_memory_allocated() - before
    assert num_bytes < 4 * query.numel() * 4, num_bytes
    expected, _ = grouped_attention(module, query.cpu(), key.cpu(), value.cpu(), mask.cpu())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)


@check
def storage_can_be_changed_under_a_tensor() -> None:
    tensor = torch.arange(6.0, device="sim:0")
    tensor.resize_(2, 2)
    assert tensor.tolist() == [[0, 1], [2, 3]]
    tensor.resize_(100)
    assert tensor[:6].tolist() == [0, 1, 2, 3, 4, 5]
    other = torch.ones(4, device="sim:0")
    tensor.set_(other)
    tensor.zero_()
    assert other.eq(0).all()
    tensor.set_(other.untyped_storage(), 1, (2,), (1,))
    tensor.fill_(3)
    assert other.tolist() == [0, 3, 3, 0]
    tensor.set_()
    assert tensor.numel() == 0
    other.untyped_storage().resize_(64)
    assert other.tolist() == [0, 3, 3, 0]
    copied = copy.deepcopy(other)
    assert copied.add_(1).tolist() == [1, 4, 4, 1]
    assert other.tolist() == [0, 3, 3, 0]


@check
def inference_mode_and_parameters_work() -> None:
    layer = torch.nn.Linear(4, 4).to("sim:0")
    with torch.inference_mode():
        made = layer(torch.ones(2, 4, device="sim:0"))
        assert made.is_inference()
        made.add_(1).view(-1)[0] = 0
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
        layer.bias.data = torch.zeros(4, device="sim:0")
        assert layer(torch.ones(1, 4, device="sim:0")).tolist() == [[1, 1, 1, 1]]


@check
def tensors_of_two_devices_do_not_mix() -> None:
    """A forgotten `.to(device)` must fail here as it would on a GPU."""
    on_sim, on_cpu = torch.ones(3, device="sim:0"), torch.ones(3)
    assert (on_sim * torch.tensor(2.0)).tolist() == [2, 2, 2]
    assert on_sim[torch.tensor([0, 2])].tolist() == [1, 1]
    wrong: list[Callable[[], object]] = [
        lambda: on_sim + on_cpu,
        lambda: on_cpu + on_sim,
        lambda: F.embedding(torch.tensor([0]), torch.ones(3, 3, device="sim:0")),
        lambda: torch.cat([on_sim, on_cpu]),
        lambda: on_cpu.add_(on_sim),
    ]
    for mistake in wrong:
        with pytest.raises(RuntimeError, match="same device"):
            mistake()


@check
def random_numbers_follow_the_seed() -> None:
    torch.manual_seed(5)
    first = torch.randn(10, device="sim:0")
    state = torch.get_device_module("sim").get_rng_state()
    second = torch.rand(10, device="sim:0")
    torch.get_device_module("sim").set_rng_state(state)
    assert torch.rand(10, device="sim:0").equal(second)
    torch.manual_seed(5)
    assert torch.randn(10, device="sim:0").equal(first)
    drawn = [
        torch.randn(10, device="sim:0", generator=torch.Generator("sim:0").manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


@check
def published_matrices_are_widened_as_on_the_cpu() -> None:
    """All of it stays on the device: nothing is read back."""
    generator = torch.Generator().manual_seed(0)
    order, awq_parts = gptq((104, 128), generator, has_order=True)[0], awq((104, 128), generator)[0]
    blocks, small = float8((104, 128), generator, block=(16, 64))[0], nvfp4((104, 128), generator)[0]
    cases: list[tuple[WidenedFormat, dict[str, torch.Tensor]]] = [
        (GptqFormat((104, 128), 4, 32, 1, True), {"": order["qweight"], **{f".{name}": order[name] for name in order}}),
        (AwqFormat((104, 128), 32), {"": awq_parts["qweight"], **{f".{name}": awq_parts[name] for name in awq_parts}}),
        (
            EightBitFormat((104, 128), "fp8", (16, 64)),
            {"": blocks["weight"], ".scales": blocks["weight_scale_inv"]},
        ),
        (
            MicroscaledFormat((104, 128), "nvfp4", 16, "divides"),
            {
                "": small["weight_packed"],
                ".scales": small["weight_scale"],
                ".global_scale": small["weight_global_scale"],
            },
        ),
    ]
    for found, parts in cases:
        expected, out = torch.empty(40, 128), torch.empty(40, 128, device="sim:0")
        found.widen(parts, 64, 104, expected)
        found.widen({suffix: part.to("sim:0") for suffix, part in parts.items()}, 64, 104, out)
        assert out.cpu().equal(expected), found.name


# --------------------------------------------------------------------------------------------------------------- models


def logits_and_tokens(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        return model(ids).logits, tokens


def run_model(kind: str) -> None:
    model = model_factory.random_model(model_factory.tiny_config(kind))
    ids = torch.arange(3, 23).reshape(1, -1)
    logits, tokens = logits_and_tokens(model, ids)
    sim.reset_counters()
    found_logits, found_tokens = logits_and_tokens(model.to("sim:0"), ids.to("sim:0"))
    torch.testing.assert_close(found_logits.cpu(), logits, rtol=1e-5, atol=1e-5)
    assert found_tokens.cpu().equal(tokens)
    assert sim.hazards() == []


def run_model_in_bfloat16(kind: str) -> None:
    """Both round to 8 bits; plain and fused attention round in different places."""
    model = model_factory.random_model(model_factory.tiny_config(kind)).to(torch.bfloat16)
    ids = torch.arange(3, 23).reshape(1, -1)
    with torch.inference_mode():
        logits = model(ids).logits.float()
        found = model.to("sim:0")(ids.to("sim:0")).logits
    assert found.dtype == torch.bfloat16
    assert (found.cpu().float() - logits).norm() < 0.02 * logits.norm()


CHECKS |= {f"{kind}_agrees_with_the_cpu": partial(run_model, kind) for kind in ("llama", "qwen2", "gemma3")}
CHECKS |= {f"{kind}_runs_in_bfloat16": partial(run_model_in_bfloat16, kind) for kind in ("llama", "qwen2", "gemma3")}


test_simulated_device = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
