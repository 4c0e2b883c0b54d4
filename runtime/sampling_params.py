"""How the next token is chosen: temperature, filters, penalties, bans, seed, verification, and where an answer ends."""

import math
from dataclasses import dataclass

from runtime.errors import OptionError

VERIFICATIONS = ("auto", "sequoia", "coupled", "specinfer", "top-k")
"""How the tokens of a tree may be judged above temperature 0; see `speculation.schemes`."""
SCHEMES_OF_ONE_TEXT = ("greedy", "coupled", "top-k")
"""With these, prompt, seed and target alone decide the tokens: no draft and no tree can change them."""

SCHEMES_IN_CONTEXT = ("greedy", "coupled")
"""A tree's shape may depend on what was drawn where the target's own token is followed, whatever the tree holds."""


def auto_verification(temperature: float) -> str:
    """The scheme that `auto` stands for: greedy at temperature 0, where all are the same, and coupled above.

    By `bench robustness` and `bench trees`, see the README: within the error as many tokens as sequoia in static trees,
    more in those that take their shape from context, which sequoia cannot have, and a text that the seed alone decides.
    """
    return "greedy" if temperature == 0 else "coupled"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The choices of one answer; draft and target use the same ones."""

    temperature: float = 0.0
    """0 is greedy: the target's most likely token. Otherwise logits are divided by it."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose mass reaches this; 1 keeps all."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Of what top-k and top-p keep, drop the tokens below this share of the likeliest one's probability; 0 drops
    none."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or answer are divided by it if positive, else multiplied; 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer holds; 0 is off."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time the answer holds it; 0 is off."""
    banned_tokens: tuple[int, ...] = ()
    """Token ids that are never emitted, end tokens included."""
    forced_tokens: tuple[int, ...] = ()
    """Token ids that the answer begins with."""
    seed: int = 0
    """Same seed, same tokens: with SCHEMES_OF_ONE_TEXT whatever proposes them, with the others if the trees are the
    same too, which those that are chosen while running need not be."""
    max_new_tokens: int = 256
    """An answer ends after this many tokens."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these strings."""
    verification: str = "auto"
    """Which scheme proposes and accepts tokens above temperature 0: one of VERIFICATIONS."""

    def __post_init__(self) -> None:
        problems = (
            ("temperature", self.temperature, "0 or more", math.isfinite(self.temperature) and self.temperature >= 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            ("top_k", self.top_k, "0 (off) or more", self.top_k >= 0),
            ("min_p", self.min_p, "from 0 (off) to 1", 0 <= self.min_p <= 1),
            ("repetition_penalty", self.repetition_penalty, "from 0.01 to 100", 0.01 <= self.repetition_penalty <= 100),
            ("presence_penalty", self.presence_penalty, "from -2 to 2", -2 <= self.presence_penalty <= 2),
            ("frequency_penalty", self.frequency_penalty, "from -2 to 2", -2 <= self.frequency_penalty <= 2),
            ("banned_tokens", list(self.banned_tokens), "token ids, 0 or more", _are_ids(self.banned_tokens)),
            ("forced_tokens", list(self.forced_tokens), "token ids, 0 or more", _are_ids(self.forced_tokens)),
            ("seed", self.seed, "0 or more", self.seed >= 0),
            ("max_new_tokens", self.max_new_tokens, "1 or more", self.max_new_tokens >= 1),
            ("stop", list(self.stop), "strings that are not empty", all(self.stop)),
            (
                "verification",
                self.verification,
                f"one of {', '.join(VERIFICATIONS)}",
                self.verification in VERIFICATIONS,
            ),
        )
        for name, found, expected, is_fine in problems:
            if not is_fine:
                raise OptionError(f"{name} is {found}; it must be {expected}")

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the target's most likely one."""
        return self.temperature == 0

    @property
    def scheme_name(self) -> str:
        """The scheme in use: `greedy` at temperature 0, whatever was asked for."""
        is_open = self.is_greedy or self.verification == "auto"
        return auto_verification(self.temperature) if is_open else self.verification


def _are_ids(token_ids: tuple[int, ...]) -> bool:
    return all(token_id >= 0 for token_id in token_ids)
