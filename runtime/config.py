"""Every option of the engine and of answers, stated once: type, default, rules, and what people are told of it.

`EngineConfig` holds the choices of a session, `SamplingParams` those of an answer. Flags of the command line, keys of
prompt files and settings of the chat app derive from their fields. Each value is checked by itself, before any file is
opened; whether it fits the machine is not known here.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import Field, dataclass, fields, replace
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from offload.units import LinkSpeed, parse_bytes, parse_link
from profiles.errors import BadInputError
from runtime.errors import OptionValueError

ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
ReadPath = Literal["auto", "direct", "buffered"]
DraftFormat = Literal["auto", "int8", "nf4", "stored"]
KvCache = Literal["auto", "device", "host"]
"""Where the target's keys and values are: all on the device, or those of streamed layers in host memory."""
KvFormat = Literal["exact", "int8"]
"""What keys and values are that travel: as they are computed, or int8 with one scale for each head of each token."""
Pack = Literal["auto", "on", "off"]
"""Whether matrices of bfloat16 lie packed in host memory and on the device; see `offload.packed_layers`."""
Lookup = Literal["on", "off"]
Generation = Literal["auto", "plain"]
"""Whether a model's generation_config.json says how its answers are written, where nobody chose, or only ends them."""
TreeKind = Literal["either", "static", "dynamic"]
"""Static trees have the shape that is best on average, dynamic ones take theirs from the draft in context."""
TreeSearch = Literal["best-first", "dp"]
"""How the best tree of a size and a level limit is found: the worthiest nodes one by one, for acceptance that does not
increase with rank, also by depth; or the paper's dynamic program, for every vector by rank, which takes seconds for
1,024 nodes and minutes for 4,096."""
CostModel = Literal["pipeline", "paper"]
"""What a round is predicted to cost: the recurrence over layers, with a draft step's cost by its width; or the paper's
t(n) + d c, the pass alone and d draft steps that all cost what one of width 1 does, where nothing overlaps."""
_OPEN_TREES: Mapping[str, TreeKind] = {"auto": "either", "static": "static", "dynamic": "dynamic"}

_Parsed = TypeVar("_Parsed")

VERIFICATIONS = ("auto", "sequoia", "coupled", "specinfer", "top-k")
"""How the tokens of a tree may be judged above temperature 0; see `speculation.schemes`."""
SCHEMES_OF_ONE_TEXT = ("greedy", "coupled", "top-k")
"""With these, prompt, seed and target alone decide the tokens: no draft and no tree can change them."""
SCHEMES_IN_CONTEXT = ("greedy", "coupled")
"""A tree's shape may depend on what was drawn where the target's own token is followed, whatever the tree holds."""

MAX_TEMPERATURE = 2.0
"""As in OpenAI's API; far above it a text is noise."""
MAX_TREE_NODES, MAX_TREE_LEVELS = 4096, 128
"""The largest tree that may be asked for, and the deepest that is searched for.

A draft that is right in 99 of 100 places brings half as much again with 128 levels as with 64."""
PREFILL_CHUNK_TOKENS = 256
"""Prompt tokens that a layer of the target computes at once on a processor, and a draft in one pass."""
ACCELERATOR_SLICE_TOKENS = 512
"""Prompt tokens that a layer of the target computes at once on an accelerator, where trees leave no more room.

Half as many would fill half of a large card's multiprocessors, and widen quantized weights twice as often.
"""
PACKED_SLICE_TOKENS = 2048
"""The same where layers lie packed, each of whose slices unpacks them anew: 23 ms of a layer of 70B on an L40.

A layer of 70B computes these tokens in 28 ms there (arithmetic from data sheets), and they take 0.34 GB more.
"""
MAX_PREFILL_TOKENS, ACCELERATOR_MAX_PREFILL_TOKENS = 1024, 4096
"""Most prompt tokens of one pass, on a processor and on an accelerator: memory is kept for their hidden states.

On an L40 a pass of 70B weights in bf16 computes 4,096 tokens in about the time in which the weights cross its link
(arithmetic from data sheets: 4.5 s and 4.4 s), so that longer ones would bring nothing; they take 134 MB, a thirteenth
of a layer there, and three tenths of one in NF4.
"""
DEFAULT_CONTEXT_TOKENS = 4096
LEAST_MAX_NODES, MOST_MAX_NODES = 256, 1024
"""Largest tree that `auto` considers: the most where its keys and values take little beside the model, else less.

A pass over so many nodes is still shorter than its copies on an accelerator (Sequoia, section 4), which always has room
for the most. Which size pays follows from what rounds cost."""
MOST_BATCH = 1024
"""Prompts that may be answered together."""
UNLIMITED_THINKING = 10**9 - 1
"""Tokens of thinking that no answer has, for a model that is to think as long as it likes."""
MAX_GRAFTED_NODES = 32
"""Nodes that looked-up branches may add to a tree; every cache keeps room for them where they are wanted."""

MODELS, MEMORY, ANSWERS = "Models", "Memory and link", "Answers"
"""Headings of the options."""


@dataclass(frozen=True, slots=True)
class Option:
    """A value that people choose: what they are told of it, and how they write it."""

    help: str
    """One sentence: what it does, and which values it takes."""
    group: str = ANSWERS
    """Heading under which it stands; an answer's own where nothing else is said."""
    flag: str | None = None
    """Its name on the command line, where that is not the field's without `num_` and `_bytes`."""
    unset: str | None = None
    """What holds where nobody chose, if the default does not say it."""
    word: str | None = None
    """What is written for None in the settings."""
    parse: Callable[[str, str], Any] | None = None
    """Turns what is written into the field's value; takes the option's name too, for the error."""
    choices: tuple[str, ...] = ()
    """The only values there are; () where any text or number may be one."""
    is_setting: bool = True
    """Whether the chat app remembers it."""
    name: str = ""
    """Name of the field, like the next two and the choices of a Literal filled in by `options_of`."""
    kind: Any = None
    """Its type: float, int, str, bool, a tuple, a Literal of texts, or one of these | None."""
    default: Any = None

    @property
    def typed_name(self) -> str:
        """Return its flag, as the name of a parameter."""
        flag = self.flag or self.name.removeprefix("num_").removesuffix("_bytes")
        return flag.replace("-", "_")


def options_of(owner: type[Any]) -> Mapping[str, Option]:
    """Return the options that the fields of `owner` are, by field name, in their order."""
    return _described(cast("Hashable", owner))


@cache  # every line of a prompt file is checked by them
def _described(owner: Any) -> Mapping[str, Option]:
    hints = get_type_hints(owner, include_extras=True)

    def describe(field: Field[Any]) -> Option:
        kind, option = get_args(hints[field.name])
        assert isinstance(option, Option)
        choices = get_args(kind) if get_origin(kind) is Literal else option.choices
        return replace(option, name=field.name, kind=kind, default=field.default, choices=choices)

    return MappingProxyType({field.name: describe(field) for field in fields(owner)})


def check_choices(options: Any) -> None:
    """Raise OptionValueError where an option has another value than one of its choices."""
    for name, option in options_of(type(options)).items():
        found = getattr(options, name)
        if option.choices and found not in option.choices:
            raise OptionValueError(name, f" is {found!r}; it must be one of {', '.join(option.choices)}")


def parse_memory(text: str, option: str) -> int:
    """Return the bytes of a budget such as `2.2GB`, 0 for `min`; raise OptionError, which names the option."""
    return 0 if text == "min" else _parsed(parse_bytes, text, option)


def parse_prefix_cache(text: str) -> int | None:
    """Return the bytes that the prefix cache may take: 0 for `off`, None for `auto`. Raises OptionError."""
    if text in ("auto", "off"):
        return None if text == "auto" else 0
    try:
        return parse_bytes(text)
    except BadInputError as error:
        raise OptionValueError("prefix_cache", f" is {text!r}; it must be auto, off, or a size as in 20GB") from error


def parse_batch(text: str, option: str) -> int | None:
    """Return a number of prompts, None for `auto`; raise OptionError, which names the option."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST_BATCH:
        raise OptionValueError(option, f" is {text!r}; it must be auto, or from 1 to {MOST_BATCH} prompts")
    return int(text)


def parse_thinking_budget(text: str, option: str) -> int:
    """Return the most tokens of thinking, 0 for `off`; raise OptionError, which names the option."""
    if text in ("on", "off"):
        return UNLIMITED_THINKING if text == "on" else 0
    if re.fullmatch("[0-9]{1,9}", text) is None:
        raise OptionValueError(option, f" is {text!r}; it must be on, off, or the most tokens of thinking, as in 500")
    return int(text)


def parse_speed(text: str, option: str) -> LinkSpeed:
    """Return the speed of a link such as `25GB/s,10us`; raise OptionError, which names the option."""
    return _parsed(parse_link, text, option)


def _parsed(parse: Callable[[str], _Parsed], text: str, option: str) -> _Parsed:
    try:
        return parse(text)
    except BadInputError as error:
        raise OptionValueError(option, f": {error}") from error


_LEAST = {
    "device_memory_bytes": 0,
    "host_memory_bytes": 0,
    "ring_slots": 2,
    "context_tokens": 2,
    "num_reader_threads": 1,
    "num_texts": 1,
}
_MOST = {"num_reader_threads": 256, "num_texts": MOST_BATCH}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The choices of one session; raises OptionError for a value outside its range."""

    target: Annotated[
        str | None,
        Option(
            "Folder, GGUF file or hub name of the model to run, ollama:NAME:TAG or lmstudio:OWNER/NAME.",
            MODELS,
            unset="the demo model",
            word="",
        ),
    ] = None
    draft: Annotated[
        str,
        Option(
            "auto (the best on this machine where layers stream), substitute (the target itself, quantized), none, "
            "or a model as for the target.",
            MODELS,
        ),
    ] = "substitute"
    draft_format: Annotated[
        DraftFormat,
        Option("How a draft is held: int8, nf4, stored as in its files, or auto, the fastest here.", MODELS),
    ] = "auto"
    share_layers: Annotated[
        bool,
        Option(
            "A substitute uses the target's resident layers as they are, and copies only the others.",
            MODELS,
            is_setting=False,
        ),
    ] = False
    lookup: Annotated[Lookup, Option("Also propose what followed earlier in the text itself: on or off.", ANSWERS)] = (
        "off"
    )
    """The commands that answer prompts have it on; those that measure count and time the draft's own trees."""
    num_texts: Annotated[
        int | None,
        Option(
            "Prompts that are answered together and share each pass: auto, or how many.",
            ANSWERS,
            flag="batch",
            unset="auto",
            parse=parse_batch,
            is_setting=False,
        ),
    ] = 1
    """None is chosen from how many there are and from memory."""
    generation: Annotated[
        Generation,
        Option(
            "auto takes the model's own generation settings (generation_config.json) where you choose nothing; plain "
            "leaves them out.",
            ANSWERS,
        ),
    ] = "plain"
    """`auto` in the commands that answer prompts; those that measure or compare do so without."""
    tree: Annotated[
        str,
        Option(
            "auto; nodes x levels as in 64x10, the root counted; dynamic or dynamic:64x10, shaped by context; or "
            "static, never so shaped.",
            MODELS,
        ),
    ] = "auto"
    context_tokens: Annotated[
        int | None,
        Option(
            "Most tokens of prompt and answer together.",
            MODELS,
            flag="context",
            unset="what the prompts need",
            word="auto",
        ),
    ] = None
    """None is chosen from the model and the budget."""
    compute_dtype: Annotated[
        ComputeDtype, Option("Type of the matmuls: auto, float32, bfloat16 or float16.", MODELS, is_setting=False)
    ] = "auto"
    """`auto` follows what the device does fast."""
    device: Annotated[
        str, Option("auto (an accelerator if torch finds one), cpu, or a type and index as in cuda:0.", MEMORY)
    ] = "auto"
    draft_device: Annotated[
        str,
        Option(
            "Where the draft is held and computes: auto (beside the target), cpu, or another card as in cuda:1.",
            MEMORY,
            is_setting=False,
        ),
    ] = "auto"
    device_memory_bytes: Annotated[
        int | None,
        Option(
            "Budget of the device, as in 2.2GB, or min: no layer stays resident.",
            MEMORY,
            unset="what is free",
            word="free",
            parse=parse_memory,
        ),
    ] = None
    """0 is the least that works."""
    kv_cache: Annotated[
        KvCache,
        Option(
            "Where keys and values are: device, host (those of streamed layers wait in host memory and cross the link "
            "with them), or auto, which moves the fewest bytes.",
            MEMORY,
            is_setting=False,
        ),
    ] = "auto"
    kv_format: Annotated[
        KvFormat,
        Option(
            "How keys and values travel, where any do: exact, or int8, half the bytes, with which the text may differ.",
            MEMORY,
        ),
    ] = "exact"
    """`exact` is the text of a cache on the device; with `int8` which layers stream has a say in it too."""
    prefix_cache: Annotated[
        str,
        Option(
            "Keep texts' keys and values for the next start, in prefixes/ of the cache folder (delete it to empty it): "
            "auto (8 GB), off or a size.",
            MEMORY,
        ),
    ] = "off"
    """`auto` in the commands that answer prompts. Whatever is in a text can be told from its keys and values."""
    host_memory_bytes: Annotated[
        int | None,
        Option(
            "Budget of host memory for streamed layers, as in 16GB or min.",
            MEMORY,
            unset="what is free for an accelerator or an emulated link, else none",
            word="free",
            parse=parse_memory,
        ),
    ] = None
    link: Annotated[
        str | None,
        Option(
            "Stream over a link of this speed and latency, as in 25GB/s,10us.",
            MEMORY,
            flag="emulate-link",
            unset="the real link",
            is_setting=False,
        ),
    ] = None
    disk_link: Annotated[
        str | None,
        Option(
            "Read layers for the emulated link from a disk of this speed, as in 3GB/s,100us.",
            MEMORY,
            flag="emulate-disk",
            unset="the real disk",
            is_setting=False,
        ),
    ] = None
    pack: Annotated[
        Pack,
        Option(
            "Keep bfloat16 layers in memory in 12 bits an element, bit for bit, a quarter less to hold and to send but "
            "more to compute: on, off, or auto, where that is clearly faster.",
            MEMORY,
            is_setting=False,
        ),
    ] = "auto"
    """Layers on disk stay as their files have them."""
    ring_slots: Annotated[
        int, Option("Device slots that streamed layers share, 2 or more.", MEMORY, is_setting=False)
    ] = 2
    io: Annotated[
        ReadPath, Option("Disk reads: auto, direct (past the page cache) or buffered.", MEMORY, is_setting=False)
    ] = "auto"
    """`auto` is direct where the file system allows it, but loads through the page cache where memory has room for it.

    What the page cache holds is loaded from there in any case: the second start of a model that fits into memory twice
    waits for no disk. Layers that stream from disk do not look there.
    """
    num_reader_threads: Annotated[
        int,
        Option("Threads that read one layer from disk together, at most 256.", MEMORY, is_setting=False),
    ] = 6

    def __post_init__(self) -> None:
        for name, minimum in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise OptionValueError(name, f" is {value}; it must be {minimum} or more")
            if value is not None and value > _MOST.get(name, value):
                raise OptionValueError(name, f" is {value}; it must be {_MOST[name]} or less")
        check_choices(self)
        model = "a model folder, a GGUF file or a hub name"
        device = "auto, cpu, or one as in cuda:0"
        for name, what in {"target": model, "draft": model, "device": device, "draft_device": device}.items():
            text = getattr(self, name)
            if text is not None and not text.strip():
                raise OptionValueError(name, f" is empty; give {what}")
        parse_tree(self.tree)
        parse_prefix_cache(self.prefix_cache)
        for name in ("link", "disk_link"):
            if getattr(self, name) is not None:
                parse_speed(getattr(self, name), name)
        if self.disk_link is not None and self.link is None:
            raise OptionValueError("disk_link", " has no link in front of it; give --emulate-link as well")

    @property
    def draft_model(self) -> str | None:
        """Return the folder or hub name of a draft with files of its own; None where the draft has none."""
        return None if self.draft in ("auto", "substitute", "none") else self.draft

    @property
    def is_plain(self) -> bool:
        """Return whether there is no draft, so that every pass emits one token."""
        return self.draft == "none"

    @property
    def num_graft_nodes(self) -> int:
        """Return how many nodes may be added to any tree of drafts."""
        return 0 if self.is_plain or self.lookup == "off" else MAX_GRAFTED_NODES

    @property
    def tree_shape(self) -> tuple[int, int] | None:
        """Return (nodes, levels) of a fixed tree, root counted in both; None when the size is chosen."""
        return parse_tree(self.tree)[1]

    @property
    def tree_kind(self) -> TreeKind:
        return parse_tree(self.tree)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The choices of one answer, the same for draft and target; raises OptionError for a value outside its range."""

    temperature: Annotated[float, Option("0 is greedy, the likeliest token each time; up to 2, more varied.")] = 0.0
    """Logits are divided by it."""
    top_p: Annotated[
        float, Option("Keep the likeliest tokens up to this mass, from 0, the likeliest alone, to 1, all.")
    ] = 1.0
    top_k: Annotated[int, Option("Keep this many of the likeliest tokens; 0 keeps all.")] = 0
    min_p: Annotated[
        float, Option("Drop tokens below this share of the likeliest one's probability; 0 drops none.")
    ] = 0.0
    """Of what top-k and top-p keep."""
    repetition_penalty: Annotated[
        float, Option("Above 1, tokens of prompt and answer become less likely; 1 is off.")
    ] = 1.0
    """Logits of these tokens are divided by it if positive, else multiplied."""
    presence_penalty: Annotated[
        float, Option("Subtracted from the logit of tokens that the answer holds; 0 is off.", is_setting=False)
    ] = 0.0
    frequency_penalty: Annotated[
        float, Option("The same, once for each time the answer holds the token; 0 is off.", is_setting=False)
    ] = 0.0
    banned_tokens: Annotated[
        tuple[int, ...],
        Option("Never emit this token id; may be given again.", flag="ban-token", unset="none", is_setting=False),
    ] = ()
    """End tokens included."""
    forced_tokens: Annotated[
        tuple[int, ...],
        Option(
            "Begin the answer with this token id; given again, with these in their order.",
            flag="force-token",
            unset="none",
            is_setting=False,
        ),
    ] = ()
    seed: Annotated[int, Option("Same seed, same text, whatever the tree, with the default verification.")] = 0
    """With SCHEMES_OF_ONE_TEXT whatever proposes them, with the others if the trees are the same too, which those that
    are chosen while running need not be."""
    max_new_tokens: Annotated[int, Option("An answer ends after this many tokens.")] = 256
    thinking_budget: Annotated[
        int | None,
        Option(
            "Thinking before the answer, of a model that does so: on, off, or its most tokens, as in 500.",
            flag="think",
            unset="what the model does by itself",
            word="auto",
            parse=parse_thinking_budget,
        ),
    ] = None
    """Most tokens of thinking, behind which the mark that ends it is forced.

    0 is none, UNLIMITED_THINKING as many as the model likes; None leaves the model's chat template to its own choice.
    """
    stop: Annotated[
        tuple[str, ...], Option("End before this text; may be given again.", unset="none", is_setting=False)
    ] = ()
    verification: Annotated[
        str,
        Option(
            "How sampled tokens are verified: auto, sequoia, coupled (the seed alone decides the text), specinfer or "
            "top-k.",
            choices=VERIFICATIONS,
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        rules = (
            ("temperature", f"from 0 (greedy) to {MAX_TEMPERATURE:g}", 0 <= self.temperature <= MAX_TEMPERATURE),
            ("top_p", "from 0 (the likeliest token alone) to 1 (off)", 0 <= self.top_p <= 1),
            ("top_k", "0 (off) or more", self.top_k >= 0),
            ("min_p", "from 0 (off) to 1", 0 <= self.min_p <= 1),
            ("repetition_penalty", "from 0.01 to 100", 0.01 <= self.repetition_penalty <= 100),
            ("presence_penalty", "from -2 to 2", -2 <= self.presence_penalty <= 2),
            ("frequency_penalty", "from -2 to 2", -2 <= self.frequency_penalty <= 2),
            ("banned_tokens", "token ids, 0 or more", min(self.banned_tokens, default=0) >= 0),
            ("forced_tokens", "token ids, 0 or more", min(self.forced_tokens, default=0) >= 0),
            ("seed", "0 or more", self.seed >= 0),
            ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
            ("thinking_budget", "0 or more", (self.thinking_budget or 0) >= 0),
            ("stop", "UTF-8 strings that are not empty", all(map(_is_utf_8, self.stop)) and all(self.stop)),
        )
        for name, expected, is_kept in rules:
            if not is_kept:
                raise OptionValueError(name, f" is {_as_typed(getattr(self, name))}; it must be {expected}")
        check_choices(self)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def scheme_name(self) -> str:
        """Return the scheme in use: `greedy` at temperature 0, where all are the same; above, `auto` is `coupled`.

        By `bench robustness` and `bench trees`: within the error as many tokens as sequoia in static trees, more in
        those that take their shape from context, which sequoia cannot have, and a text that the seed alone decides.
        """
        if self.is_greedy:
            return "greedy"
        return "coupled" if self.verification == "auto" else self.verification


def _as_typed(value: Any) -> str:
    """Return a value as people write it: 3 of 3.0, and one thing of a list of one."""
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else list(value)
    return repr(value).removesuffix(".0")


def _is_utf_8(text: str) -> bool:
    """Return whether there is no half of a surrogate pair, as in an argument of another encoding."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def parse_tree(text: str) -> tuple[TreeKind, tuple[int, int] | None]:
    """Return the kind, and (nodes, levels) where they are fixed; raise OptionError for anything else.

    `auto` -> either, `static` and `dynamic` -> these, `64x10` -> static of that shape, `dynamic:64x10` -> likewise.
    """
    if text in _OPEN_TREES:
        return _OPEN_TREES[text], None
    match = re.fullmatch(r"(dynamic:)?([0-9]{1,9})x([0-9]{1,9})", text)
    if match is None:
        raise OptionValueError(
            "tree", f" is {text!r}; it must be auto, static, dynamic, nodes x levels as in 64x10, or dynamic:64x10"
        )
    num_nodes, num_levels = int(match[2]), int(match[3])
    if not 2 <= num_levels <= num_nodes <= MAX_TREE_NODES:
        raise OptionValueError(
            "tree",
            f" is {text!r}; it needs 2 to {MAX_TREE_NODES} nodes and from 2 levels up to one per node, the root "
            "counted in both",
        )
    return ("dynamic" if match[1] else "static"), (num_nodes, num_levels)
