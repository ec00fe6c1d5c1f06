"""The contract of a connector: how an engine gets KV blocks from elsewhere, and passes its own on.

The scheduler's side answers at once, from what it knows; the worker's side moves bytes in the
background. A server with several ranks runs the first once and the second in each of them, so what
passes between them is plain values. docs/connectors.md has vLLM's and LMCache's names for all this.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stafette.kvtransfer.blocks import NO_EXTRAS, Extras
from stafette.kvtransfer.events import KvEvent
from stafette.kvtransfer.layout import BlockLayout

if TYPE_CHECKING:
    from stafette.kvtransfer.agent import Agent
    from stafette.kvtransfer.connectors.loading import Load

ALL_LAYERS = -1  # in place of a layer: what is saved, or waited for, is whole blocks


@dataclass(frozen=True, slots=True, eq=False)
class KvShare:
    """A rank's share of a pool: what an agent can register, one block after the other."""

    buffer: object
    layout: BlockLayout


@dataclass(frozen=True, slots=True, eq=False)
class KvRequest:
    """What a connector may know of a request."""

    request_id: str
    token_ids: Sequence[int]
    hashes: tuple[bytes, ...]  # of the blocks that may come from elsewhere, from the first on
    block_size: int
    extras: Extras = NO_EXTRAS
    params: Mapping[str, object] = field(default_factory=dict)  # by connector, as they came along


@dataclass(frozen=True, slots=True, eq=False)
class LoadOrder:
    """Blocks of one request to be loaded: neighbours in its prompt. Plain values only."""

    request_id: str
    first: int  # the place of the first of them among the blocks of the prompt
    hashes: tuple[bytes, ...]
    blocks: tuple[int, ...]  # where each of them goes
    source: object = None  # what the connector told itself when the request began

    @classmethod
    def of(
        cls, request: KvRequest, first: int, blocks: Sequence[int], source: object = None
    ) -> "LoadOrder":
        hashes = request.hashes[first : first + len(blocks)]
        return cls(request.request_id, first, hashes, tuple(blocks), source)

    @property
    def end(self) -> int:
        return self.first + len(self.blocks)

    def part(self, first: int, end: int, source: object) -> "LoadOrder":
        """Return an order for some of these blocks, by their places in the prompt."""
        some = slice(first - self.first, end - self.first)
        return LoadOrder(self.request_id, first, self.hashes[some], self.blocks[some], source)


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    """Blocks of one request whose content is complete, neighbours in its prompt.

    Nobody overwrites them before `release` was called, once, from any thread.
    """

    request_id: str  # empty: of no request that knows of it (`saves_all`)
    first: int  # a place in the prompt; without a request, 0
    parent: bytes  # the hash of the block before the first; ROOT when there is none
    hashes: tuple[bytes, ...]
    blocks: tuple[int, ...]
    release: Callable[[], None]
    params: Mapping[str, object] = field(default_factory=dict)  # by connector


@dataclass(frozen=True, slots=True)
class Finish:
    """What a connector says to the end of a request."""

    keep: bool = False  # some of its saves are not released: who keeps no count must wait
    params: Mapping[str, object] = field(default_factory=dict)  # by connector: for the next engine


class KvConnector(ABC):
    """One way to other memory. Errors of the world end a load; they are never raised here."""

    name: str
    saves_all: bool = False  # wants the blocks of every request, as soon as they are computed
    shares: tuple[KvShare, ...] = ()  # what was registered

    @classmethod
    @abstractmethod
    def of(cls, agent: "Agent | None", config: Any) -> "KvConnector":
        """Return one for this worker's agent; `config` is of its own class, None for defaults."""

    def on_kv_events(self, emit: Callable[[KvEvent], None]) -> None:  # noqa: B027
        """Tell of changes on tiers below the pool, from any thread. Comes before `register`."""

    # The scheduler's side. No method blocks.

    def check(self, params: Mapping[str, object]) -> None:  # noqa: B027  may accept all
        """Raise a KvTransferError when a request's parameters are not what they should be.

        Only requests whose parameters have passed come to the methods below.
        """

    @abstractmethod
    def matched_tokens(self, request: KvRequest, num_held: int) -> int | None:
        """Return how many tokens, in whole blocks, can be had beyond those held already.

        None: not known yet, ask again. It is a promise that may be broken: `Load` tells.
        """

    @abstractmethod
    def begin(self, request: KvRequest, first: int, blocks: Sequence[int]) -> LoadOrder:
        """Return the order for what was matched, into these blocks of the request.

        No blocks: what was matched is not wanted. That order too is given to `start_load`.
        """

    @abstractmethod
    def finish(self, request: KvRequest, reason: str = "") -> Finish:
        """Nothing more is saved or loaded for a request; `reason` tells why it ended early.

        Comes for every request that was matched, began or was saved; a second time does no harm.
        Where ranks have connectors of their own, theirs are told too.
        """

    def relieve(self) -> bool:
        """Blocks are wanted back: let some go that nobody may want; False when there are none.

        Comes again and again, while nothing can run for lack of them, or while this worker ends.
        """
        return False

    def note_step(  # noqa: B027  may not care what computing takes
        self, prompt_tokens: int, seconds: float, waiting: int
    ) -> None:
        """A step computed so many tokens of prompts, while so many requests waited."""

    def reset_cache(self) -> None:  # noqa: B027  may keep nothing
        """Forget every block that is kept: the model's weights are others now."""

    # The worker's side.

    def register(self, shares: Sequence[KvShare]) -> None:
        """Take in the pool's memory, once, before anything else of this side."""
        self.shares = tuple(shares)

    @abstractmethod
    def start_load(self, order: LoadOrder) -> "Load":
        """Begin to fill the order's blocks: no step that is on its way may touch them."""

    def wait_layer(self, load: "Load", layer: int, timeout_s: float) -> bool:
        """Return whether a layer of all its blocks is there, or never will be, within that time."""
        return load.wait(timeout_s)

    @abstractmethod
    def save_layer(self, layer: int, save: Save) -> None:
        """Pass on a layer that is computed. The last one, or ALL_LAYERS, completes the blocks."""

    def wait_saved(self, timeout_s: float) -> bool:
        """Return whether the blocks may be overwritten, by an engine that does not hold them."""
        return True

    def completes(self, layer: int) -> bool:
        """Return whether blocks are whole when this layer of them is saved."""
        layouts = [share.layout for share in self.shares]
        return layer == ALL_LAYERS or all(
            layer + 1 == layout.first_layer + layout.num_layers for layout in layouts
        )

    @abstractmethod
    def close(self) -> None:
        """End every load, release every save. Safe to call twice."""
