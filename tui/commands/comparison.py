"""Plain streaming against a tree of drafts: the same prompts, link and budget, answered twice.

The answers appear as they are written, and end with two lines that compare the costs. Greedy texts must be identical,
and sampled ones where the seed alone decides them (`PromptResult.is_text_fixed`); other samples are independent
draws. Does not know how a session is opened.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from runtime.events import GenerationStatistics, TextDelta
from runtime.prompts.headless import HeadlessEvent, PromptEnded, PromptResult, PromptStarted
from runtime.prompts.prompt_file import PromptRequest
from tui.report import cost_line
from tui.terminal_text import one_line, strip_terminal_escapes


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of the same lines under plain streaming and with a tree."""

    plain: Sequence[PromptResult]
    """One result per line, in order."""
    tree: Sequence[PromptResult]
    """One result per line, in the same order."""

    @property
    def answered(self) -> list[tuple[PromptResult, PromptResult]]:
        """The (plain, tree) pairs of lines that both answered."""
        pairs = zip(self.plain, self.tree, strict=True)
        return [(plain, tree) for plain, tree in pairs if plain.error is None and tree.error is None]

    @property
    def fixed(self) -> list[tuple[PromptResult, PromptResult]]:
        """The pairs whose two texts must be the same."""
        return [(plain, tree) for plain, tree in self.answered if tree.is_text_fixed]

    @property
    def num_identical(self) -> int:
        """Lines whose two texts must be the same and are, to the last character."""
        return sum(plain.text == tree.text for plain, tree in self.fixed)

    @property
    def num_errors(self) -> int:
        """Lines that one of the two did not answer."""
        return len(self.plain) - len(self.answered)

    @property
    def plain_total(self) -> GenerationStatistics:
        """What the answered lines cost under plain streaming."""
        return _total(plain for plain, _ in self.answered)

    @property
    def tree_total(self) -> GenerationStatistics:
        """What the same lines cost with a tree."""
        return _total(tree for _, tree in self.answered)

    @property
    def speedup(self) -> float | None:
        """Seconds per token of plain streaming over those of the tree; None where either is unknown."""
        plain_seconds, tree_seconds = self.plain_total.seconds_per_token, self.tree_total.seconds_per_token
        return plain_seconds / tree_seconds if plain_seconds and tree_seconds else None

    def lines(self) -> tuple[str, str]:
        """The comparison for people: one line for plain streaming, one for the tree."""
        faster = "" if self.speedup is None else f"{self.speedup:.2f}x as fast, "
        num_free = len(self.answered) - len(self.fixed)
        verdicts = [f"{self.num_identical} of {len(self.fixed)} texts identical"] if self.fixed or not num_free else []
        verdicts += [f"{num_free} texts sampled anew"] if num_free else []
        verdict = faster + ", ".join(verdicts)
        return f"plain  {cost_line(self.plain_total)}", f"tree   {cost_line(self.tree_total)}   {verdict}"

    def to_record(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        return {
            "plain": _costs(self.plain_total),
            "tree": _costs(self.tree_total),
            "speedup": self.speedup,
            "num_answered": len(self.answered),
            "num_fixed": len(self.fixed),
            "num_identical": self.num_identical,
            "num_errors": self.num_errors,
        }


def show_answers(
    events: Iterable[HeadlessEvent], out: TextIO, *, num_prompts: int, earlier: Sequence[PromptResult] = ()
) -> list[PromptResult]:
    """Print prompts and answers while they come; says of each whether its text is that of `earlier`, if given."""
    results: list[PromptResult] = []
    for event in events:
        if isinstance(event, PromptStarted):
            out.write(f"\n[{event.position}/{num_prompts}] {_question(event.request)}\n")
        elif isinstance(event, TextDelta):
            out.write(strip_terminal_escapes(event.text))
        elif isinstance(event, PromptEnded):
            results.append(event.result)
            out.write(f"\n{_closing_line(event.result, earlier[len(results) - 1 :])}\n")
        out.flush()
    return results


def _question(request: PromptRequest) -> str:
    text = request.prompt if request.messages is None else request.messages[-1].content
    return f"{one_line(request.id)}: {one_line(text or '')}"


def _closing_line(result: PromptResult, earlier: Sequence[PromptResult]) -> str:
    if result.statistics is None:
        return f"  error: {one_line(result.error or '')}"
    verdict = ""
    if earlier and earlier[0].text is not None:
        verdict = _verdict(earlier[0], result)
    return f"  ({cost_line(result.statistics)}{verdict})"


def _verdict(plain: PromptResult, tree: PromptResult) -> str:
    if not tree.is_text_fixed:
        return f"   another sample ({tree.verification})"
    return "   identical" if plain.text == tree.text else "   DIFFERS from plain streaming"


def _total(results: Iterable[PromptResult]) -> GenerationStatistics:
    return GenerationStatistics.total(result.statistics for result in results if result.statistics is not None)


def _costs(statistics: GenerationStatistics) -> dict[str, Any]:
    ratios = {
        "seconds_per_token": statistics.seconds_per_token,
        "tokens_per_round": statistics.tokens_per_round,
        "link_utilization": statistics.link_utilization,
    }
    return ratios | asdict(statistics)
