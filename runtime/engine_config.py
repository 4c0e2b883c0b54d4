"""Every choice about models, memory and the link, as the user states it and before any file is opened.

A plan is derived from this and from the machine. Does not know what fits: only that each value makes sense on its own.
"""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from offload.units import (
    parse_bytes,
    parse_link,
)
from profiles.errors import BadInputError
from runtime.errors import OptionError

ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
ReadPath = Literal["auto", "direct", "buffered"]
DraftFormat = Literal["auto", "int8", "nf4", "stored"]
Lookup = Literal["on", "off"]
TreeKind = Literal["either", "static", "dynamic"]
"""Static trees have the shape that is best on average, dynamic ones take theirs from the draft in context."""
_OPEN_TREES: Mapping[str, TreeKind] = {"auto": "either", "static": "static", "dynamic": "dynamic"}

MAX_TREE_NODES = 4096
PREFILL_CHUNK_TOKENS = 256
"""Prompt tokens that one pass computes."""
DEFAULT_CONTEXT_TOKENS = 4096
DEFAULT_MAX_NODES = 256
"""Largest tree that `auto` considers on a processor: a larger one computes longer than any disk reads."""
ACCELERATOR_MAX_NODES = 1024
"""The same on an accelerator, where a pass over so many nodes is still shorter than its copies (Sequoia, section 4)."""
MAX_GRAFTED_NODES = 32
"""Nodes that looked-up branches may add to a tree; every cache keeps room for them where they are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The choices of one session; raises OptionError for a value outside its range."""

    target: str | None = None
    """Folder or hub name of the model whose text is wanted; None is the demo model."""
    draft: str = "substitute"
    """`substitute` (the target's layers, quantized, resident), `none` (plain streaming), or a folder or hub name."""
    draft_format: DraftFormat = "auto"
    """How a draft's layers are held: `int8` rows, `nf4`, `stored` as in its files, or `auto`, the fastest measured."""
    share_layers: bool = False
    """Whether a substitute draft uses the target's resident layers as they are instead of a copy of its own."""
    lookup: Lookup = "off"
    """`on` adds what once followed in the text itself to the draft's trees. The commands that answer prompts have it
    on; those that measure count and time the draft's own trees."""
    tree: str = "auto"
    """`auto`; nodes x levels as in `64x10`, both with the root, of the best tree on average; `dynamic` or
    `dynamic:64x10`, whose shape follows from context; `static`, chosen but never from context."""
    device: str = "auto"
    """`auto` (an accelerator if torch finds one, else the processor), `cpu`, or `TYPE[:INDEX]` as in `cuda:0`."""
    device_memory_bytes: int | None = None
    """Budget of the device; None is what the machine has free, 0 the least that works: no layer stays resident."""
    host_memory_bytes: int | None = None
    """Budget of host memory for layers; None is what the machine has free."""
    link: str | None = None
    """Speed and latency of an emulated link, as in `25GB/s,10us`; None is the real link."""
    disk_link: str | None = None
    """Speed and latency of an emulated disk behind the emulated link."""
    ring_slots: int = 2
    """Device slots that streamed layers share."""
    context_tokens: int | None = None
    """Most tokens of prompt and answer together; None is chosen from the model and the budget."""
    compute_dtype: ComputeDtype = "auto"
    """Type that matmuls run in; auto follows what the device does fast."""
    io: ReadPath = "auto"
    """`direct` bypasses the page cache, `buffered` does not; auto is direct where the file system allows it."""
    num_reader_threads: int = 6
    """Threads that read one layer from disk together."""

    def __post_init__(self) -> None:
        minimums = (
            ("device_memory_bytes", self.device_memory_bytes, 0),
            ("host_memory_bytes", self.host_memory_bytes, 0),
            ("ring_slots", self.ring_slots, 2),
            ("context_tokens", self.context_tokens, 2),
            ("num_reader_threads", self.num_reader_threads, 1),
        )
        for name, value, minimum in minimums:
            if value is not None and value < minimum:
                raise OptionError(f"{name} is {value}; it must be {minimum} or more")
        choices = (
            ("compute_dtype", self.compute_dtype, ComputeDtype),
            ("io", self.io, ReadPath),
            ("draft_format", self.draft_format, DraftFormat),
            ("lookup", self.lookup, Lookup),
        )
        for name, found, allowed in choices:
            if found not in get_args(allowed):
                raise OptionError(f"{name} is {found!r}; it must be one of {', '.join(get_args(allowed))}")
        for name, text in (("target", self.target), ("draft", self.draft)):
            if text is not None and not text.strip():
                raise OptionError(f"{name} is empty; give a model folder or a hub name")
        parse_tree(self.tree)
        for name, text in (("device", self.device), ("link", self.link), ("disk_link", self.disk_link)):
            if text is not None and not text.strip():
                raise OptionError(f"{name} is empty; leave it out, or give it a value")
        for name, text in (("link", self.link), ("disk_link", self.disk_link)):
            if text is not None:
                with _as_option_error(name):
                    parse_link(text)
        if self.disk_link is not None and self.link is None:
            raise OptionError("disk_link has no link in front of it; give link (--emulate-link) as well")

    @property
    def is_plain(self) -> bool:
        """Whether there is no draft, so that every pass emits one token."""
        return self.draft == "none"

    @property
    def num_graft_nodes(self) -> int:
        """Nodes that may be added to any tree of drafts."""
        return 0 if self.is_plain or self.lookup == "off" else MAX_GRAFTED_NODES

    @property
    def tree_shape(self) -> tuple[int, int] | None:
        """(nodes, levels) of a fixed tree, root counted in both; None when the size is chosen."""
        return parse_tree(self.tree)[1]

    @property
    def tree_kind(self) -> TreeKind:
        """Which kinds of trees may be grown."""
        return parse_tree(self.tree)[0]


def parse_tree(text: str) -> tuple[TreeKind, tuple[int, int] | None]:
    """The kind, and nodes and levels where they are fixed; raises OptionError for anything else.

    `auto` -> either, `static` and `dynamic` -> these, `64x10` -> static of that shape, `dynamic:64x10` -> likewise.
    """
    if text in _OPEN_TREES:
        return _OPEN_TREES[text], None
    match = re.fullmatch(r"(dynamic:)?([0-9]{1,9})x([0-9]{1,9})", text)
    if match is None:
        raise OptionError(
            f"tree is {text!r}; it must be auto, static, dynamic, nodes x levels as in 64x10, or dynamic:64x10"
        )
    num_nodes, num_levels = int(match[2]), int(match[3])
    if not 2 <= num_levels <= num_nodes <= MAX_TREE_NODES:
        raise OptionError(
            f"tree is {text!r}; it needs 2 to {MAX_TREE_NODES} nodes and from 2 levels up to one per node, "
            "the root counted in both"
        )
    return ("dynamic" if match[1] else "static"), (num_nodes, num_levels)


def parse_memory(text: str, option: str) -> int:
    """Bytes of a budget such as `2.2GB`, 0 for `min`; raises OptionError that names the option."""
    if text == "min":
        return 0
    with _as_option_error(option):
        return parse_bytes(text)


@contextmanager
def _as_option_error(option: str) -> Generator[None, None, None]:
    try:
        yield
    except BadInputError as error:
        raise OptionError(f"{option}: {error}") from error
