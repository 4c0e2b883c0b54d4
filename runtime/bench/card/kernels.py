"""Probes of a card's kernels, with the matrices of a 70B and of its 8B draft."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from offload.device import wait_for_device
from offload.formats.draft_weight import HeldFormat, draft_converter
from offload.formats.four_bit import FourBitWeight, has_kernel
from offload.formats.weight_format import DenseWeight, StoredWeight, UpcastScratch
from offload.units import format_bytes
from runtime.bench.card.setting import Findings, LayerSizes, Setting, Timed, peak_bytes, time_work
from runtime.model.attention import grouped_attention
from runtime.model.pass_graphs import Recorder, recorder_for

_ALIGNMENTS = (16, 8, 2)
_DTYPE = torch.bfloat16
_ATTENTIONS = {"repeated": sdpa_attention_forward, "grouped": grouped_attention}


def time_alignment(setting: Setting) -> Findings:
    """Multiply with one matrix that begins at a multiple of 16 bytes, then 8 and 2 bytes further on."""
    shape = (setting.sizes.target.inner, setting.sizes.target.hidden)
    storage = setting.random(shape[0] * shape[1] + 16)
    rows = []
    for width, alignment in product(setting.sizes.widths, _ALIGNMENTS):
        matrix = _shifted(storage, alignment)[: shape[0] * shape[1]].view(shape)
        inputs = setting.random(width, shape[1])
        timed = _timed(partial(F.linear, inputs, matrix), setting)
        rows.append({"num_rows": width, "alignment": alignment, "seconds": timed.seconds})
    best = {row["num_rows"]: row["seconds"] for row in rows if row["alignment"] == _ALIGNMENTS[0]}
    says = tuple(
        f"at {alignment} bytes a product takes "
        + ", ".join(
            f"{row['seconds'] / best[row['num_rows']]:.2f} times as long with {row['num_rows']} rows"
            for row in rows
            if row["alignment"] == alignment
        )
        for alignment in _ALIGNMENTS[1:]
    )
    return Findings(says, {"products": rows})


def _shifted(storage: torch.Tensor, alignment: int) -> torch.Tensor:
    """Return `storage`, from its first byte on where that is a multiple of 16, or `alignment` bytes further on."""
    return storage if alignment == _ALIGNMENTS[0] else storage[alignment // storage.element_size() :]


def read_odd_codes(setting: Setting) -> Findings:
    """Give the fused product codes at an odd address, which may end the process: that is an answer too."""
    device, hidden = setting.device, setting.sizes.draft.hidden
    if not has_kernel("gemm_4bit", device.type):
        return Findings(("bitsandbytes has no fused product for this device",), {"has_kernel": False})
    weight = FourBitWeight.quantize(setting.random(hidden, hidden).cpu(), is_fast=True).to(device)
    codes = weight.parts[""].view(-1)
    odd = torch.empty(codes.numel() + 1, dtype=torch.uint8, device=device)[1:].copy_(codes)
    inputs = setting.random(1, hidden)
    expected = weight.fused_product(inputs, None)
    found = replace(weight, parts={**weight.parts, "": odd}).fused_product(inputs, None)
    is_equal = bool(torch.equal(expected, found))
    return Findings((f"read, and {'right' if is_equal else 'WRONG'}",), {"has_kernel": True, "is_equal": is_equal})


def weigh_graphs(setting: Setting) -> Findings:
    """Record passes of many shapes through one recorder, and through a new one each; compare what they reserve."""
    if recorder_for(setting.device) is None:
        return Findings(("passes are not recorded on this device",), {"is_recorded": False})
    torch.accelerator.empty_cache()
    shapes = list(product(setting.sizes.widths, setting.sizes.num_keys))
    reserved = {}
    for name, is_shared in (("one_stream_bytes", True), ("new_streams_bytes", False)):
        before = torch.accelerator.memory_reserved(setting.device)
        shared = recorder_for(setting.device)
        replays = []
        for width, num_keys in shapes:
            record = shared if is_shared else recorder_for(setting.device)
            assert record is not None
            replays.append(record(_attention_work(setting, width=width, num_keys=num_keys)))
        wait_for_device(setting.device)
        reserved[name] = torch.accelerator.memory_reserved(setting.device) - before
        del replays, shared
        torch.accelerator.empty_cache()
    says = (
        f"{len(shapes)} recordings reserve {format_bytes(reserved['one_stream_bytes'])} on one stream and pool, "
        f"{format_bytes(reserved['new_streams_bytes'])} each on its own"
    )
    return Findings((says,), {"is_recorded": True, "num_recordings": len(shapes), **reserved})


def _attention_work(setting: Setting, *, width: int, num_keys: int) -> Callable[[], torch.Tensor]:
    """Return attention of a draft's layer over so many keys, of which it makes copies as large as they are."""
    layer = setting.sizes.draft
    queries = setting.random(1, layer.num_heads, width, layer.head_dim)
    keys = setting.random(1, layer.num_kv_heads, num_keys, layer.head_dim)

    def work() -> torch.Tensor:
        wide = keys.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1)
        return F.scaled_dot_product_attention(queries, wide, wide)

    return work


def time_attention(setting: Setting) -> Findings:
    """Attend to texts of several lengths, with keys and values repeated for every query head and as they are."""
    rows = []
    for (name, layer, width), num_keys in product(
        (
            ("target", setting.sizes.target, max(setting.sizes.widths)),
            ("draft", setting.sizes.draft, min(16, max(setting.sizes.widths))),
        ),
        setting.sizes.num_keys,
    ):
        queries = setting.random(1, layer.num_heads, width, layer.head_dim)
        keys = setting.random(1, layer.num_kv_heads, num_keys, layer.head_dim)
        mask = torch.zeros(1, 1, width, num_keys, dtype=_DTYPE, device=setting.device)
        module = SimpleNamespace(num_key_value_groups=layer.num_heads // layer.num_kv_heads, is_causal=True)
        row: dict[str, Any] = {"model": name, "num_rows": width, "num_keys": num_keys}
        for kind, attend in _ATTENTIONS.items():
            work = partial(attend, module, queries, keys, keys, mask)
            row[f"{kind}_seconds"] = _timed(work, setting).seconds
            row[f"{kind}_bytes"] = peak_bytes(work, setting.device)
        rows.append(row)
    says = tuple(
        f"{row['model']}, {row['num_rows']} rows, {row['num_keys']} keys: "
        + ", ".join(
            f"{kind} {row[f'{kind}_seconds'] * 1e3:.3f} ms and {format_bytes(row[f'{kind}_bytes'])}"
            for kind in _ATTENTIONS
        )
        for row in rows
    )
    return Findings(says, {"attentions": rows})


def time_chunks(setting: Setting) -> Findings:
    """Multiply a pass through a 4-bit matrix that is widened so much at a time, and through the fused product."""
    shape, device = (setting.sizes.target.inner, setting.sizes.target.hidden), setting.device
    exact = FourBitWeight.quantize(setting.random(*shape), device=device)
    inputs = setting.random(max(setting.sizes.widths), shape[1])
    rows = []
    for num_elements in setting.sizes.chunk_elements:
        scratch = UpcastScratch(_DTYPE, device, num_elements=num_elements)
        timed = _timed(partial(exact.linear, inputs, None, scratch), setting)
        rows.append({"chunk_elements": num_elements, "launch_seconds": timed.launch_seconds, "seconds": timed.seconds})
    fused_seconds = None
    if has_kernel("gemm_4bit", device.type):
        fused = replace(exact, is_fast=True)
        fused_seconds = _timed(partial(fused.linear, inputs, None, UpcastScratch(_DTYPE, device)), setting).seconds
    best = min(rows, key=lambda row: row["seconds"])
    says = (
        f"{len(inputs)} rows through {shape[0]} x {shape[1]}: {best['seconds'] * 1e3:.3f} ms in chunks of "
        f"{best['chunk_elements'] / 1e6:.0f} M, {rows[0]['seconds'] * 1e3:.3f} in the smallest, "
        f"{rows[-1]['seconds'] * 1e3:.3f} in the largest"
        + ("" if fused_seconds is None else f", {fused_seconds * 1e3:.3f} fused")
    )
    return Findings((says,), {"chunks": rows, "fused_seconds": fused_seconds})


def time_draft_layers(setting: Setting) -> Findings:
    """Multiply through the seven matrices of a draft's layer, held in each way, eagerly and replayed."""
    layer, device = setting.sizes.draft, setting.device
    matrices = [DenseWeight(setting.random(*shape).cpu(), is_fast=True) for shape in layer.matrices]
    rows: list[dict[str, Any]] = []
    formats: tuple[HeldFormat, ...] = ("stored", "int8", "nf4")
    for held in formats:
        convert = draft_converter(held, _DTYPE, device)
        converting = time_work(partial(_each, convert, matrices), device, num_repeats=1)
        weights = _each(convert, matrices)
        for width in setting.sizes.widths:
            work = _layer_work(setting, layer, weights, width=width)
            eager = _timed(work, setting)
            rows.append(
                {
                    "held": held,
                    "num_rows": width,
                    "eager_seconds": eager.seconds,
                    "launch_seconds": eager.launch_seconds,
                    "replayed_seconds": _replayed_seconds(work, setting),
                    "convert_seconds": converting.seconds,
                }
            )
    says = tuple(
        f"{held}: "
        + ", ".join(
            f"{row['num_rows']} rows {(row['replayed_seconds'] or row['eager_seconds']) * 1e3:.3f} ms"
            + (f" ({row['eager_seconds'] * 1e3:.3f} eager)" if row["replayed_seconds"] else "")
            for row in rows
            if row["held"] == held
        )
        for held in formats
    )
    return Findings(says, {"layers": rows})


def _each(convert: Callable[[StoredWeight], StoredWeight], weights: Sequence[StoredWeight]) -> list[StoredWeight]:
    return [convert(weight) for weight in weights]


def _layer_work(
    setting: Setting, layer: LayerSizes, weights: Sequence[StoredWeight], *, width: int
) -> Callable[[], torch.Tensor]:
    scratch = UpcastScratch(_DTYPE, setting.device)
    inputs = {size: setting.random(width, size) for size in {shape[1] for shape in layer.matrices}}

    def work() -> torch.Tensor:
        results = [
            weight.linear(inputs[shape[1]], None, scratch)
            for weight, shape in zip(weights, layer.matrices, strict=True)
        ]
        return results[-1]

    return work


def _replayed_seconds(work: Callable[[], torch.Tensor], setting: Setting) -> float | None:
    """Return how long a recording of `work` takes; None where it cannot be recorded."""
    record: Recorder | None = recorder_for(setting.device)
    if record is None:
        return None
    work()
    try:
        replay = record(work)
    except RuntimeError:
        return None
    return _timed(replay, setting).seconds


def _timed(work: Callable[[], object], setting: Setting) -> Timed:
    return time_work(work, setting.device, num_repeats=setting.sizes.num_repeats)
