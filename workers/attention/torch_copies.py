"""K and V of sequences that decode, each in one piece, kept from step to step.

To gather their blocks anew takes longer than to attend to them. So each has a place here: its whole
context is gathered into it once, and from then on only its newest token. A place is kept for the
next step alone: who is not in that one, one token longer, starts again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch

from stafette.workers.attention.paged_pool import block_ids, gather, read_tokens, token_ids


def num_places(sequences: int) -> int:
    """Return how many there are for so many: a newcomer rarely makes them too few."""
    return sequences + sequences // 4


@dataclass(frozen=True, slots=True)
class Decoding:
    """A sequence in one step: what its context is, and the blocks that hold it."""

    sequence: int
    context: int
    blocks: list[int]

    def follows(self, before: "Decoding") -> bool:
        """Return whether it is `before`, one token longer, and was not computed anew elsewhere."""
        grown = self.sequence == before.sequence >= 0 and self.context == before.context + 1
        return grown and self.blocks[: len(before.blocks)] == before.blocks


class Places:
    """Who is where. Anybody moves only when all begin anew."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, Decoding]] = {}  # by sequence: its place

    def arrange(self, step: Sequence[Decoding]) -> tuple[list[int], list[int]]:
        """Return a place for each, and the rows whose place does not hold the tokens before."""
        kept = {}
        for row, each in enumerate(step):
            held = self._held.get(each.sequence)
            if held is not None and each.follows(held[1]):
                kept[row] = held[0]
        if kept and max(kept.values()) >= 2 * len(step):
            kept = {}  # most places would be empty
        taken = set(kept.values())
        free = (place for place in count() if place not in taken)
        places = [kept[row] if row in kept else next(free) for row in range(len(step))]
        self._held = {
            each.sequence: (place, each) for each, place in zip(step, places, strict=True)
        }
        return places, [row for row in range(len(step)) if row not in kept]

    def forget(self) -> None:
        self._held.clear()


@dataclass(frozen=True, slots=True)
class Kept:
    """One step's use of the copies, the same for every layer."""

    copies: "Copies"
    count: int  # places, holes among them
    places: torch.Tensor | None  # of the rows; None: row i has place i
    fresh: torch.Tensor | None  # places to fill, and with which blocks
    fresh_blocks: torch.Tensor | None
    sources: torch.Tensor | None  # rows of the pool that hold the newest tokens of the others
    targets: torch.Tensor | None  # and where they go

    def by_place(self, of_rows: torch.Tensor) -> torch.Tensor:
        """Return the rows' values where their places are; those of holes are 1."""
        if self.places is None:
            return of_rows
        values = of_rows.new_ones((self.count, *of_rows.shape[1:]))
        return values.index_copy_(0, self.places, of_rows)

    def by_row(self, of_places: torch.Tensor) -> torch.Tensor:
        return of_places if self.places is None else of_places.index_select(0, self.places)

    def read(self, layer_kv: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Bring a layer's copies up to date: [2 (K, V), places, kv heads, context, head_dim]."""
        buffer = self.copies.buffer(layer_kv, dtype)
        if self.fresh is not None and self.fresh_blocks is not None:
            buffer[:, self.fresh] = gather(layer_kv, self.fresh_blocks, dtype)
        if self.sources is not None and self.targets is not None:
            newest = read_tokens(layer_kv, self.sources, dtype)
            buffer.view(-1, buffer.shape[-1]).index_copy_(0, self.targets, newest)
        return buffer[:, : self.count]


class Copies:
    """Of sequences whose contexts are of one order. `layer_kv` is any layer of their pool."""

    def __init__(self) -> None:
        self._places = Places()
        self._buffers: dict[int, torch.Tensor] = {}  # by the layer's address
        self._shape = (0, 0)  # places, blocks of each

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def keep(
        self,
        sequences: Sequence[int],
        contexts: Sequence[int],
        blocks: torch.Tensor,
        slots: torch.Tensor,
        layer_kv: torch.Tensor,
    ) -> Kept:
        """Return what a step's rows find: [rows, width] blocks and each one's newest slot."""
        size = layer_kv.shape[-2]
        step = [
            Decoding(sequence, context, table[: -(-context // size)])
            for sequence, context, table in zip(sequences, contexts, blocks.tolist(), strict=True)
        ]
        places, fresh = self._places.arrange(step)
        capacity, width = self._shape
        if max(places) >= capacity or blocks.shape[1] != width:
            self._places.forget()
            places, fresh = self._places.arrange(step)
            self._buffers.clear()
            self._shape = (num_places(len(places)), blocks.shape[1])
        return self._kept(places, fresh, contexts, blocks, slots, layer_kv)

    def buffer(self, layer_kv: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        key = layer_kv.data_ptr()
        if key not in self._buffers:
            capacity, width = self._shape
            _, two, kv_heads, block_size, head_dim = layer_kv.shape
            shape = two, capacity, kv_heads, width * block_size, head_dim
            # Zeros: a masked row's share is 0, and 0 times what was never written must be 0.
            self._buffers[key] = torch.zeros(shape, dtype=dtype, device=layer_kv.device)
        return self._buffers[key]

    def _kept(
        self,
        places: list[int],
        fresh: list[int],
        contexts: Sequence[int],
        blocks: torch.Tensor,
        slots: torch.Tensor,
        layer_kv: torch.Tensor,
    ) -> Kept:
        device = slots.device
        at = torch.tensor(places, device=device)
        in_order = places == list(range(len(places)))
        new = torch.tensor(fresh, dtype=torch.long, device=device)
        known = torch.ones(len(places), dtype=torch.bool, device=device)
        known[new] = False
        sources = targets = None
        if len(fresh) < len(places):
            newest = torch.tensor(contexts, device=device)[known] - 1
            sources = token_ids(layer_kv, slots[known])
            targets = self._rows(at[known], newest, layer_kv)
        return Kept(
            copies=self,
            count=max(places) + 1,
            places=None if in_order else at,
            fresh=at[new] if fresh else None,
            fresh_blocks=block_ids(layer_kv, blocks[new]) if fresh else None,
            sources=sources,
            targets=targets,
        )

    def _rows(
        self, places: torch.Tensor, positions: torch.Tensor, layer_kv: torch.Tensor
    ) -> torch.Tensor:
        """Return the rows of a buffer that hold these tokens, in the order of `token_ids`."""
        capacity, width = self._shape
        _, two, kv_heads, block_size, _ = layer_kv.shape
        length = width * block_size
        heads = torch.arange(two, device=places.device)[:, None] * (capacity * kv_heads)
        heads = (heads + torch.arange(kv_heads, device=places.device)).flatten()
        first = places * kv_heads
        return ((heads + first[:, None]) * length + positions[:, None]).flatten()
