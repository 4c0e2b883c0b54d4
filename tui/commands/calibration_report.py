"""What people and programs read after a calibration: a table of what was measured, and one flat record."""

from collections.abc import Iterable
from typing import Any

from offload.units import format_bytes
from profiles.calibrator import CalibrationResult
from profiles.machine_profile import MachineProfile
from profiles.pair_profile import AcceptanceTable, PairProfile
from tui.terminal_text import one_line

_SHOWN_RANKS = 8
_SHOWN_DEPTHS = (0, 1, 2, 4, 8, 16, 31)


def calibration_lines(result: CalibrationResult) -> list[str]:
    """A calibration for people, a few lines on each part; fitted figures stand in brackets."""
    pair = result.pair
    return [
        *_machine_lines(result.machine),
        one_line(f"target {pair.target}, draft {pair.draft}, computing in {pair.compute_dtype}"),
        f"draft step, ms by width: {_costs((step.width, step.seconds, step.is_fitted) for step in pair.draft_steps)}",
        *_pass_lines(pair),
        f"head and walk, ms by nodes: {_costs((cost.num_nodes, cost.seconds, False) for cost in pair.walk_costs)}",
        *_overlap_lines(result),
        *[line for table in pair.acceptance for line in _acceptance_lines(table)],
        *result.doubts,
        f"{result.num_texts} texts of the target; {result.seconds:.0f} s in all",
    ]


def calibration_record(result: CalibrationResult) -> dict[str, Any]:
    """The calibration's main figures as a JSON object; the profiles hold all of them."""
    pair, machine = result.pair, result.machine
    return {
        "seconds": round(result.seconds, 2),
        "target": str(pair.target),
        "draft": str(pair.draft),
        "device": str(machine.device),
        "link_bytes_per_second": machine.link_bytes_per_second,
        "disk_bytes_per_second": machine.disk_bytes_per_second,
        "draft_step_seconds": {step.width: step.seconds for step in pair.draft_steps},
        "num_measured_passes": sum(not cost.is_fitted for cost in pair.pass_costs),
        "num_fitted_passes": sum(cost.is_fitted for cost in pair.pass_costs),
        "copy_seconds": None if result.overlap is None else result.overlap.copy_seconds,
        "copy_slowdown": None if result.overlap is None else result.overlap.copy_slowdown,
        "compute_slowdown": None if result.overlap is None else result.overlap.compute_slowdown,
        "num_texts": result.num_texts,
        "doubts": result.doubts,
        "acceptance": [
            {
                "temperature": table.temperature,
                "num_positions": max(table.num_positions),
                "num_texts": table.num_texts,
                "by_rank": table.by_rank,
                "by_rank_errors": table.by_rank_errors,
                "first_by_depth": [row[0] for row in table.by_depth],
                "positions_by_depth": table.by_depth_positions,
            }
            for table in pair.acceptance
        ],
    }


def _machine_lines(machine: MachineProfile) -> list[str]:
    pinned = "not limited" if machine.pin_budget_bytes is None else format_bytes(machine.pin_budget_bytes)
    lines = [
        one_line(
            f"{machine.device}: {format_bytes(machine.device_memory_bytes)} on the device, "
            f"{format_bytes(machine.host_memory_bytes)} on the host, pinned memory {pinned}"
        )
    ]
    for name, rate, latency in (
        ("copies to the device", machine.link_bytes_per_second, machine.link_latency_seconds),
        ("reads past the page cache", machine.disk_bytes_per_second, machine.disk_latency_seconds),
    ):
        if rate is None:
            lines.append(f"{name}: not measured")
        else:
            lines.append(f"{name}: {format_bytes(rate)}/s after {1e6 * (latency or 0.0):.0f} us")
    return lines


def _pass_lines(pair: PairProfile) -> list[str]:
    contexts = sorted({cost.context_tokens for cost in pair.pass_costs})
    lines = []
    for context in contexts:
        costs = [
            (cost.num_tokens, cost.seconds, cost.is_fitted)
            for cost in pair.pass_costs
            if cost.context_tokens == context
        ]
        lines.append(f"pass behind {context} tokens, ms by size: {_costs(costs)}")
    return lines


def _overlap_lines(result: CalibrationResult) -> list[str]:
    overlap = result.overlap
    if overlap is None:
        return ["no layer streams, so nothing was copied during passes"]
    lines = [f"copies of a pass alone: {overlap.copy_seconds:.2f} s"]
    for what, value, tokens in (
        ("computing slows copies", overlap.copy_slowdown, overlap.link_bound_tokens),
        ("copying slows computation", overlap.compute_slowdown, overlap.compute_bound_tokens),
    ):
        shown = "not seen, counted as 0" if value is None else f"{value:.2f} s each second (passes of {tokens} tokens)"
        lines.append(f"{what}: {shown}")
    return lines


def _acceptance_lines(table: AcceptanceTable) -> list[str]:
    ranks = [
        f"{mean:.3f}" + ("" if error is None else f" (±{error:.3f})")
        for mean, error in zip(table.by_rank[:_SHOWN_RANKS], table.by_rank_errors, strict=False)
    ]
    depths = sorted({min(depth, len(table.by_depth) - 1) for depth in _SHOWN_DEPTHS})
    first = [f"{depth}: {table.by_depth[depth][0]:.3f} of {table.by_depth_positions[depth]}" for depth in depths]
    return [
        f"temperature {table.temperature:g}: acceptance by rank {' '.join(ranks)}, any {sum(table.by_rank):.3f}, "
        f"over {max(table.num_positions)} positions of {table.num_texts} texts",
        f"temperature {table.temperature:g}: first child by depth, of positions: {', '.join(first)}",
    ]


def _costs(costs: Iterable[tuple[int, float, bool]]) -> str:
    shown = ((f"{size}: {1000 * seconds:.0f}", is_fitted) for size, seconds, is_fitted in costs)
    return ", ".join(f"({text})" if is_fitted else text for text, is_fitted in shown)
