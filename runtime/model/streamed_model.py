"""A transformers causal LM whose decoder layers draw their weights from a LayerStreamer, or hold them all.

No architecture is written here: embedding, masks, rotary positions, attention and the head are transformers' own
forward, run over a batch of one with a ready four-dimensional mask. Texts that are decoded together stand one behind
the other in it. Draft and target are this same class; only where their layers' bytes are differs.
"""

import copy
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from offload.checkpoint.layer_layout import LayerLayout
from offload.errors import PassCancelledError
from offload.layer_slabs import slab_views
from offload.layer_streamer import LayerStreamer
from offload.packed_layers import PackedLayer
from offload.pass_statistics import PassStatistics
from runtime.model.architecture import DecoderParts
from runtime.model.attention import attention_masks, takes_packed_masks
from runtime.model.delta_layers import compute_over_trees, delta_module
from runtime.model.layer_binding import ComputePlan, HostEmbedding, ModuleBinder
from runtime.model.pass_graphs import USES_BEFORE_RECORDING, PassGraphs, recorder_for
from runtime.model.pass_shapes import WALK_ROWS
from runtime.model.pass_threads import PassThreads
from runtime.model.recurrent_cache import LanePlanner
from runtime.model.safe_build import cache_argument
from runtime.model.sliced_pass import Mask, PassSlice, Piece, SlicedPass, can_be_sliced, group_pieces
from runtime.model.tree_cache import LayerShape, TreeCache
from runtime.model.upload import upload
from runtime.planner.prefill import PassWidths
from runtime.speculation.token_tree import TreeTopology

_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class PassInput:
    """What one text has computed in a pass: T tokens behind C cached ones."""

    token_ids: npt.NDArray[np.int64]
    """(T,)"""
    positions: npt.NDArray[np.int64]
    """(T,) absolute positions of the tokens."""
    key_positions: npt.NDArray[np.int64]
    """(C + T,) absolute positions of everything that can be attended to."""
    sight: npt.NDArray[np.bool_]
    """(T, D): which of the last D keys each token may attend to, C + T of them at most. Those before are text, at
    positions 0, 1, ..., of which every token sees what stands up to its own position."""
    lane: int = 0
    """Of the cache, where the text's keys and values are."""
    shared: tuple[int, int] | None = None
    """(lane, C): the cached ones are another text's, at an earlier place in the pass or not in it at all."""
    border: int | None = None
    """How many tokens of the text later prompts may begin with, behind which recurrent layers keep a state; None: all,
    if it is a prompt that is read at once."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_text(self) -> int:
        """Return how many keys, the first ones, are text."""
        return len(self.key_positions) - int(self.sight.shape[1])


class _DecoderOutput(BaseModelOutputWithPastAndCrossAttentions):  # type: ignore[misc]
    """A decoder's output in which a head finds nothing but hidden states, whatever else it looks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _KnownHiddenStates(nn.Module):
    """Takes the decoder's place in front of the head: returns the hidden states that it is given."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> _DecoderOutput:
        return _DecoderOutput(last_hidden_state=inputs_embeds)


class StreamedModel:
    """Runs passes over a model; its cache holds the keys and values of every token it has seen."""

    def __init__(
        self,
        parts: DecoderParts,
        compute: ComputePlan,
        *,
        capacity: int,
        num_lanes: int = 1,
        cache_shapes: Sequence[LayerShape] | None = None,
        embedding: HostEmbedding | None = None,
        layouts: Sequence[LayerLayout] = (),
        streamer: LayerStreamer | None = None,
        widened: torch.Tensor | None = None,
        widths: PassWidths | None = None,
        packed: Mapping[int, PackedLayer] = MappingProxyType({}),
    ) -> None:
        """Everything of `parts` is bound, but with `streamer` the layers: each visit binds a slot by `layouts`.

        `capacity`: tokens of a text that the cache holds at most, of `num_lanes` texts, of `cache_shapes`, if those are
        known: then its layers share one piece of memory. `embedding`: the tokens' rows, where they wait on the host.
        `widened`: see `TreeCache`. `widths`: how many tokens of a pass a layer computes at once; None: all of them.
        `packed`: layers that lie so in memory, by index.
        """
        self.parts = parts
        self._compute = compute
        self._embedding = embedding
        rows = None if streamer is None else streamer.rows
        deltas = {index: found for index, layer in enumerate(parts.layers) if (found := delta_module(layer))}
        self.cache = TreeCache(
            num_layers=len(parts.layers),
            capacity=capacity,
            num_lanes=num_lanes,
            shapes=cache_shapes,
            travelling=rows,
            widened=widened,
            recurrent=deltas,
        )
        for index, module in deltas.items():
            compute_over_trees(module, self.cache.layers[index], has_tiled_heads=parts.has_tiled_heads)
        if rows is not None and streamer is not None:
            for index in rows.layers:  # for measurements through another ring, which has no rows
                self.cache.lend(index, rows.in_slot(index, streamer.row_slots[0]), compute.dtype)
        self.last_pass = PassStatistics(0.0, 0.0, 0.0, 0, 0, 0, 0.0)
        self._streamer = streamer
        self._is_cancelled = threading.Event()
        self._masks: dict[int | None, Mask] = {}
        self._decoder = parts.model.get_submodule(parts.decoder_name)
        self._cache_argument = cache_argument(inspect.signature(self._decoder.forward).parameters)
        self._head = _with_module(parts.model, parts.trunk_name.split("."), _KnownHiddenStates())
        self._threads = PassThreads() if compute.device.type == "cpu" else None
        self._graphs: PassGraphs | None = None
        if streamer is None and num_lanes == 1 and set(parts.layer_windows) == {None} and not deltas:
            record = recorder_for(compute.device)
            if record is not None:
                self._graphs = PassGraphs(
                    record, self._forward_full, self.cache, dtype=compute.dtype, embedding=embedding
                )
        self._is_cut = can_be_sliced(self._decoder)
        self._widths = widths if self._is_cut else None
        self._is_packed = takes_packed_masks(self._decoder)
        self._has_packed = False
        self._sliced: SlicedPass | None = None
        self._wanted: torch.Tensor | None = None
        """(W,) rows that anybody wants behind the last layer; None: all."""
        for index, layer in enumerate(parts.layers):
            self._choose_mask(layer, parts.layer_windows[index])
            self._slice(layer, parts.layer_windows[index], is_last=index == len(parts.layers) - 1)
            if streamer is not None:
                self._stream(layer, index, layouts[index], packed.get(index))

    def _choose_mask(self, layer: nn.Module, window: int | None) -> None:
        place = list(inspect.signature(layer.forward).parameters).index("attention_mask")

        def set_mask(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if self._sliced is not None:  # every slice has its own
                return args, kwargs
            if place < len(args):
                return (*args[:place], self._masks[window], *args[place + 1 :]), kwargs
            return args, {**kwargs, "attention_mask": self._masks[window]}

        layer.register_forward_pre_hook(set_mask, with_kwargs=True)

    def _slice(self, layer: nn.Module, window: int | None, *, is_last: bool) -> None:
        forward = layer.forward
        _, *names = inspect.signature(forward).parameters

        def in_slices(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            sliced = self._sliced
            if sliced is None:
                return forward(hidden, *args, **kwargs)
            named = dict(zip(names, args, strict=False)) | kwargs
            output = sliced.run(forward, hidden, named, window=window)
            wanted = self._wanted
            if not is_last or wanted is None:
                return output
            # What nobody wants needs no norm, which would hold several times its bytes.
            return tree_map_only(torch.Tensor, lambda rows: rows.index_select(1, wanted), output)

        layer.forward = in_slices

    def _stream(self, layer: nn.Module, index: int, layout: LayerLayout, packed: PackedLayer | None) -> None:
        binder = ModuleBinder(layer, self._compute, formats=self.parts.layer_formats[index])

        def bind(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert self._streamer is not None
            slab = self._streamer.acquire(index)
            if packed is not None:
                binder.learn(packed.formats)
            binder.bind(slab_views(layout, slab) if packed is None else packed.tensors(slab))
            if (rows := self._streamer.rows_of(index)) is not None:
                self.cache.lend(index, rows, self._compute.dtype)

        def release(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            assert self._streamer is not None
            binder.unbind()
            self._streamer.release(index)

        layer.register_forward_pre_hook(bind)
        layer.register_forward_hook(release)

    @contextmanager
    def streaming_from(self, streamer: LayerStreamer) -> Iterator[None]:
        """Take the layers from another ring for a while, between two passes; for measurements."""
        assert self._streamer is not None, "a resident model has no ring"
        own, self._streamer = self._streamer, streamer
        try:
            yield
        finally:
            self._streamer = own

    def cancel(self) -> None:
        """Let the pass under way end at its next streamed layer, and no other begin until `allow`; from any thread.

        Such passes raise PassCancelledError.
        """
        self._is_cancelled.set()
        if self._streamer is not None:
            self._streamer.cancel()

    def allow(self) -> None:
        """Let passes begin again after `cancel`."""
        self._is_cancelled.clear()

    @property
    def row_bytes(self) -> tuple[int, ...] | None:
        """Bytes that each layer keeps of a token; None if no pass has told."""
        return self.cache.row_bytes(self._compute.dtype)

    def restore(self, start: int, num_tokens: int, content: torch.Tensor, *, lane: int = 0) -> None:
        """Let a lane hold tokens that an earlier pass has computed, between two passes; see `TreeCache.put_rows`."""
        if self._streamer is not None:
            self._streamer.forget_rows(start)
        self.cache.allocate(torch.empty(0, dtype=self._compute.dtype, device=self._compute.device))
        self.cache.put_rows(start, num_tokens, content, lane=lane)

    @property
    def state_bytes(self) -> tuple[int, ...]:
        """Bytes of a text's state in each layer that keeps one."""
        return self.cache.state_bytes(self._compute.dtype)

    def restore_states(self, num_tokens: int, content: torch.Tensor, *, lane: int = 0) -> None:
        """Let a lane, whose rows are restored, hold so many tokens; see `TreeCache.put_states`."""
        like = torch.empty(0, dtype=self._compute.dtype, device=self._compute.device)
        self.cache.put_states(num_tokens, content, like, lane=lane)

    @property
    def vocab_size(self) -> int:
        """V: rows of the embedding, padding included."""
        return int(self.parts.config.vocab_size)

    @property
    def loading_seconds(self) -> float:
        """Seconds for which a pass that begins now would wait for layers that are still being loaded; usually 0."""
        return 0.0 if self._streamer is None else self._streamer.loading_seconds

    @property
    def can_slice(self) -> bool:
        """Whether a pass of a few wanted rows may be wider than what a layer computes at once."""
        return self._widths is not None

    @property
    def num_unsteady_passes(self) -> int:
        """How many passes of a shape take another time than all later ones; 0 where none is recorded."""
        return 0 if self._graphs is None else USES_BEFORE_RECORDING + 1

    @property
    def notices(self) -> tuple[str, ...]:
        """What does not go as it could, a sentence each."""
        notice = self._graphs.notice if self._graphs is not None else None
        return () if notice is None else (notice,)

    def run_pass(self, inputs: PassInput, *, num_wanted: int | None = None, is_prefill: bool = False) -> torch.Tensor:
        """Run a pass over one text, see `run_batch`, and return the last hidden states of the last tokens, (W, E)."""
        return self.run_batch([inputs], num_wanted=[num_wanted or inputs.num_tokens], is_prefill=is_prefill)[0]

    @torch.inference_mode()
    def run_batch(
        self, parts: Sequence[PassInput], *, num_wanted: Sequence[int] | None = None, is_prefill: bool = False
    ) -> list[torch.Tensor]:
        """Append tokens of several texts to the cache, and return each one's last hidden states of the last wanted.

        Of W_i tokens each, (W_i, E), or of all. The texts are in different lanes; the weights cross the link once for
        all of them. Where rows are left out, the tokens before the wanted ones see everything before them, and so does
        the first of these; each layer may then compute the pass slice by slice. `is_prefill`: a piece of a prompt,
        whose computation takes longer than its launches, so that it is never recorded. Raises what a failed or
        cancelled copy raises; cache and ring are then as they were before the pass.
        """
        counts = [part.num_tokens for part in parts]
        wanted = list(num_wanted or counts)
        with self._threads.computing(sum(counts)) if self._threads else nullcontext():
            hidden = self._run_recorded(parts[0]) if len(parts) == 1 and not is_prefill else None
            if hidden is None:
                hidden = self._run_packed(parts, wanted) if self._is_trying(parts) else self._run_pass(parts, wanted)
        if len(hidden) == sum(counts) != sum(wanted):
            each = zip(hidden.split(counts), wanted, strict=True)  # type: ignore[no-untyped-call]
            return [rows[-count:] for rows, count in each]
        return list(hidden.split(wanted))  # type: ignore[no-untyped-call]

    def _is_trying(self, parts: Sequence[PassInput]) -> bool:
        """Return whether these are the first texts side by side."""
        return self._is_packed and not self._has_packed and len(parts) > 1

    def _run_packed(self, parts: Sequence[PassInput], num_wanted: Sequence[int]) -> torch.Tensor:
        """Run the first pass of several texts, again text by text if the architecture looks into its mask itself."""
        try:
            hidden = self._run_pass(parts, num_wanted)
        except (AttributeError, TypeError):
            self._is_packed = False
            return self._run_pass(parts, num_wanted)
        self._has_packed = True
        return hidden

    def _run_recorded(self, inputs: PassInput) -> torch.Tensor | None:
        if self._graphs is None:
            return None
        drafted = inputs.key_positions[inputs.num_text :]
        return self._graphs.run(inputs.token_ids, inputs.positions, drafted, inputs.sight, device=self._compute.device)

    def _run_pass(self, parts: Sequence[PassInput], num_wanted: Sequence[int]) -> torch.Tensor:
        """Return the last hidden states of the wanted rows, or of all, text after text."""
        device = self._compute.device
        before = [self.cache.num_cached_in(part.lane) for part in parts]
        ids = np.concatenate([part.token_ids for part in parts])
        if self._embedding is not None:
            self._embedding.bring(ids)
        token_ids, positions, *rest = upload(
            (ids, np.concatenate([part.positions for part in parts]), *_sights(parts)), device
        )
        self._enter(parts, num_wanted, positions=positions, sights=rest)
        if self._streamer is not None:
            self._streamer.begin_pass(num_rows=before[0], num_new_rows=len(ids))
        try:
            if self._is_cancelled.is_set():  # since before the ring could hear of it
                raise PassCancelledError("The pass was cancelled before its first layer.")
            output = self._forward(token_ids[None], positions[None])
            if self._streamer is not None:
                if device.type != "cpu":
                    # Once a pass: the logits are wanted at once anyway, and the pass's times are then the device's.
                    torch.accelerator.current_stream(device).synchronize()
                self.last_pass = self._streamer.end_pass()
            self.cache.settle()
        except BaseException:
            for part, num_cached in zip(parts, before, strict=True):
                self.cache.undo(num_cached, lane=part.lane)
            if self._streamer is not None:
                self._streamer.abort_pass()
            raise
        finally:
            # As large as a layer's activations where the context is long.
            self._masks, self._sliced, self._wanted = {}, None, None
        return output[0]

    def _enter(
        self,
        parts: Sequence[PassInput],
        num_wanted: Sequence[int],
        *,
        positions: torch.Tensor,
        sights: Sequence[torch.Tensor],
    ) -> None:
        """Decide in which slices the layers compute the pass, and build the masks of each text's last piece."""
        pieces: list[Piece] = []
        start, is_cut = 0, False
        for index, (part, wanted) in enumerate(zip(parts, num_wanted, strict=True)):
            num_tokens = part.num_tokens
            num_cached = part.shared[1] if part.shared else self.cache.num_cached_in(part.lane)
            bounds = [(0, num_tokens)]
            if self._widths is not None and wanted < num_tokens:
                bounds = self._widths.bounds(num_tokens, num_wanted=wanted)
            is_cut = is_cut or len(bounds) > 1
            shared, planner = part.shared, self._lane_planner(part)
            border = planner.border(num_cached, part.border) if planner else 0
            bounds = _cut_at(border - num_cached, bounds, num_tokens=part.num_text - num_cached)
            for begin, end in bounds[:-1]:
                is_border, num_keys = num_cached + end == border, num_cached + end
                paths = planner.plan(slice(begin, end), num_keys=num_keys, is_border=is_border) if planner else None
                pieces.append(Piece(part.lane, start + begin, start + end, num_cached + end, shared, paths=paths))
                shared = None
            first = bounds[-1][0]
            drafted, sight = sights[2 * index], sights[2 * index + 1]
            masks = attention_masks(
                positions[start + first : start + num_tokens],
                key_positions=torch.cat((torch.arange(part.num_text, device=positions.device), drafted)),
                sight=sight[first:],
                windows=self.parts.layer_windows,
                dtype=self._compute.dtype,
            )
            last = (part.lane, start + first, start + num_tokens, num_cached + num_tokens)
            if planner is None:
                pieces.append(Piece(*last, shared, masks))
            else:
                paths = planner.plan(
                    slice(first, num_tokens),
                    num_keys=num_cached + num_tokens,
                    seen=part.sight[first:],
                    is_border=part.num_text == border,
                )
                pieces.append(Piece(*last, shared, masks, paths))
            start += num_tokens
        most_tokens = None if self._widths is None else self._widths.widest_tokens
        slices = [
            PassSlice.of(group, capacity=self.cache.capacity, dtype=self._compute.dtype, device=self._compute.device)
            for group in group_pieces(pieces, most_tokens=most_tokens, is_packed=self._is_packed)
        ]
        self.cache.enter(slices[0].entry)
        self._masks, self._sliced = {}, None
        if len(slices) == 1:
            self._masks = {window: slices[0].mask(window) for window in set(self.parts.layer_windows)}
            return
        self._sliced = SlicedPass(
            slices, enter=self.cache.enter, is_overwritten=self._is_cut, is_cancelled=self._is_cancelled.is_set
        )
        if is_cut:
            ends = np.cumsum([part.num_tokens for part in parts])
            rows = [np.arange(end - wanted, end) for end, wanted in zip(ends, num_wanted, strict=True)]
            (self._wanted,) = upload((np.concatenate(rows),), positions.device)

    def _lane_planner(self, part: PassInput) -> LanePlanner | None:
        """Return what plans a text's pieces for recurrent layers; None where there is none."""
        if not self.cache.recurrent:
            return None
        layer, source = self.cache.recurrent[0], part.shared  # all of them hold the same tokens
        lane, most = (part.lane, None) if source is None else source
        held = layer.lanes[lane] if most is None else layer.held_at(lane, most)
        return LanePlanner(
            part.lane,
            base=held.base,
            last_mark=layer.last_mark(lane, most),
            num_text=part.num_text,
            num_new=part.num_tokens,
            marks_between=layer.keeps_more_than_borders(lane, most),
            source=source,
            device=self._compute.device,
        )

    def _forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Run the decoder over token ids and positions, each (1, T), with the present masks: (1, T, E)."""
        # Without cuDNN's attention, which plans every new length anew, tens of milliseconds each.
        with sdpa_kernel(_ATTENTION) if self._compute.device.type == "cuda" else nullcontext():
            output = self._decoder(
                input_ids=token_ids,
                attention_mask=self._outer_mask(token_ids),
                position_ids=positions,
                use_cache=True,
                **{self._cache_argument: self.cache},
            )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _outer_mask(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return a mask for the decoder itself, which leaves a four-dimensional one alone; each layer gets its own."""
        mask = next(iter(self._masks.values()), None)
        if isinstance(mask, torch.Tensor):
            return mask
        return torch.zeros((1, 1, token_ids.shape[1], 1), dtype=self._compute.dtype, device=token_ids.device)

    def _forward_full(self, token_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the decoder of an architecture whose layers all have the same mask."""
        self._masks = {None: mask}
        return self._forward(token_ids, positions)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the architecture's own head over hidden states (M, E): float32 logits (M, V)."""
        with self._threads.computing(len(hidden), is_pass=False) if self._threads else nullcontext():
            output = self._head(inputs_embeds=hidden[None], use_cache=False)
        logits: torch.Tensor = output.logits[0].to(torch.float32)
        return logits


def _with_module(module: nn.Module, path: Sequence[str], wanted: nn.Module) -> nn.Module:
    """Return a copy of `module` that shares everything with it but the module at `path`, which is `wanted`."""
    if not path:
        return wanted
    changed = copy.copy(module)
    changed._modules = {**module._modules, path[0]: _with_module(module.get_submodule(path[0]), path[1:], wanted)}
    return changed


class LazyLogits:
    """Logit rows (V,) of a verified tree, float32, computed only for the nodes that the verifier visits, each once.

    The head of a large vocabulary costs more than a decoder layer, and a walk visits about as many nodes as it accepts.
    The first row asked for brings those of its likeliest descendants along (first child of first child, ...), up to
    WALK_ROWS of them, since one product over several rows costs little more than over one.
    """

    def __init__(
        self, model: StreamedModel, hidden: torch.Tensor, topology: TreeTopology, *, most_rows: int = WALK_ROWS
    ) -> None:
        """`hidden` (N, E): last hidden states of the tree's nodes; `most_rows`: of a product."""
        self._model = model
        self._hidden = hidden
        self._topology = topology
        self._most_rows = most_rows
        self._rows: dict[int, npt.NDArray[np.float32]] = {}

    @classmethod
    def of_texts(cls, model: StreamedModel, trees: Sequence[tuple[torch.Tensor, TreeTopology]]) -> "list[LazyLogits]":
        """Return the logits of several texts' trees, given by hidden states (N, E) and topology.

        The first rows of all come from one product, since the head's weights are read once for it.
        """
        most_rows = max(1, WALK_ROWS // max(1, len(trees)))
        found = [cls(model, hidden, topology, most_rows=most_rows) for hidden, topology in trees]
        if len(found) > 1:
            firsts = [each._first_descent(0) for each in found]
            rows = torch.cat([each._pick(nodes) for each, nodes in zip(found, firsts, strict=True)])
            logits = iter(model.logits(rows).numpy(force=True))
            for each, nodes in zip(found, firsts, strict=True):
                each._rows = {node: next(logits) for node in nodes}
        return found

    def _pick(self, nodes: Sequence[int]) -> torch.Tensor:
        (index,) = upload((np.array(nodes, dtype=np.int64),), self._hidden.device)
        return self._hidden.index_select(0, index)

    def row(self, node: int) -> npt.NDArray[np.float32]:
        """Return the target's logits after `node`."""
        if node not in self._rows:
            nodes = self._first_descent(node)
            logits = self._model.logits(self._pick(nodes)).numpy(force=True)
            self._rows = dict(zip(nodes, logits, strict=True))  # a walk never goes back up
        return self._rows[node]

    def _first_descent(self, node: int) -> list[int]:
        nodes = [node]
        while len(nodes) < self._most_rows and (children := self._topology.children(nodes[-1])):
            nodes.append(children[0])
        return nodes


def _cut_at(place: int, bounds: Sequence[tuple[int, int]], *, num_tokens: int) -> list[tuple[int, int]]:
    """Return the bounds with one more at a place that is within the first `num_tokens`."""
    if not 0 < place < num_tokens or any(place == end for _, end in bounds):
        return list(bounds)
    cut: list[tuple[int, int]] = []
    for begin, end in bounds:
        cut += [(begin, place), (place, end)] if begin < place < end else [(begin, end)]
    return cut


def chain_input(
    token_ids: Sequence[int], *, num_cached: int, lane: int = 0, shared: tuple[int, int] | None = None
) -> PassInput:
    """Return the pass that appends a plain chain of tokens behind `num_cached` committed ones."""
    num_tokens = len(token_ids)
    positions = np.arange(num_cached + num_tokens, dtype=np.int64)
    sight = np.empty((num_tokens, 0), dtype=np.bool_)
    return PassInput(np.asarray(token_ids, dtype=np.int64), positions[num_cached:], positions, sight, lane, shared)


def _sights(parts: Sequence[PassInput]) -> Iterator[npt.NDArray[Any]]:
    """Yield of each text the positions (D,) of the keys that are no text, and who sees them (T, D)."""
    for part in parts:
        yield part.key_positions[part.num_text :]
        yield part.sight
