"""What a server has done so far, counted; sums, from which whoever reads them makes rates."""

from dataclasses import dataclass, field

from runtime.events import Finished, PromptScored, Round


@dataclass(slots=True)
class Tally:
    """Counts of answers, tokens, passes and seconds since the start. For one thread at a time."""

    num_ended: dict[str, int] = field(default_factory=dict)
    """Answers by how they ended: a finish reason, `error`, `dropped`, or `refused` where the queue was full."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Of these, that were held already and not computed."""
    num_new_tokens: int = 0
    num_reasoning_tokens: int = 0
    """Of these, of thinking."""
    num_scored_tokens: int = 0
    """Tokens of prompts whose own probabilities were asked for."""
    num_rounds: int = 0
    """Trees that were verified: one of each text in a pass."""
    num_passes: float = 0.0
    """Passes that verified trees; each counts a part for each of its texts."""
    num_accepted_tokens: int = 0
    """Tokens that passes emitted."""
    answer_seconds: float = 0.0
    """From an answer's beginning to its end, of all that ended."""
    waiting_seconds: float = 0.0
    """Before they began."""
    num_begun: int = 0
    num_loads: int = 0
    num_unloads: int = 0

    def begin(self, waiting_seconds: float) -> None:
        """Count an answer that begins."""
        self.num_begun += 1
        self.waiting_seconds += waiting_seconds

    def add(self, event: object) -> None:
        """Count what an event of an answer says."""
        if isinstance(event, Round):
            self.num_rounds += 1
            self.num_passes += 1 / event.num_texts
            self.num_accepted_tokens += event.num_emitted
        elif isinstance(event, Finished):
            costs = event.statistics
            self.num_prompt_tokens += costs.prompt_tokens
            self.num_cached_tokens += costs.cached_tokens
            self.num_new_tokens += costs.new_tokens
            self.num_reasoning_tokens += costs.reasoning_tokens
        elif isinstance(event, PromptScored):
            self.num_scored_tokens += len(event.logprobs)

    def end(self, how: str, seconds: float = 0.0) -> None:
        """Count an answer that has ended, for whatever reason."""
        self.num_ended[how] = self.num_ended.get(how, 0) + 1
        self.answer_seconds += seconds

    @property
    def seconds_per_answer(self) -> float | None:
        """Return what an answer took on average once it had begun; None before the first."""
        num_done = sum(number for how, number in self.num_ended.items() if how not in ("refused", "dropped"))
        return self.answer_seconds / num_done if num_done else None
