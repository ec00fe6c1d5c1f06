"""Ends an answer at a stop string, and never shows the beginning of one too early."""

import functools
from collections import deque

from stafette.workers.errors import RequestError


class StopChecker:
    """Reads one answer's text piece by piece, each character once.

    The stop string that ends first wins; of those that end together, the longest.
    """

    def __init__(self, stop: tuple[str, ...], include_stop: bool) -> None:
        self._include_stop = include_stop
        self._root = self._node = _automaton(stop) if stop else None
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Return the text that may be shown now, and the stop string that ended the answer."""
        if self._node is None:
            return text, None
        for offset, character in enumerate(text, start=1):
            self._node = self._node.after(character)
            if self._node.found is not None:
                return self._finish(self._held + text[:offset], self._node.found)
        whole = self._held + text
        shown = len(whole) - self._node.depth
        self._held = whole[shown:]
        return whole[:shown], None

    def flush(self) -> str:
        """Return what was withheld, when the answer ends for another reason."""
        held, self._held, self._node = self._held, "", self._root
        return held

    def _finish(self, whole: str, found: str) -> tuple[str, str]:
        self.flush()
        return (whole if self._include_stop else whole[: -len(found)]), found


class _Node:
    """A state: the longest end of the text so far that begins a stop string (Aho-Corasick)."""

    __slots__ = ("depth", "found", "next", "shorter")

    def __init__(self, depth: int, root: "_Node | None") -> None:
        self.depth = depth
        self.next: dict[str, _Node] = {}
        self.shorter = root  # the state for the next shorter such end; None at the root
        self.found: str | None = None  # the longest stop string that ends here

    def after(self, character: str) -> "_Node":
        node = self
        while character not in node.next:
            if node.shorter is None:
                return node
            node = node.shorter
        return node.next[character]


@functools.lru_cache(1024)
def _automaton(stop: tuple[str, ...]) -> _Node:
    if "" in stop:
        raise RequestError("stop", stop, "must hold strings that are not empty")
    root = _Node(0, None)
    for text in stop:
        node = root
        for character in text:
            node = node.next.setdefault(character, _Node(node.depth + 1, root))
        node.found = text
    _link(root)
    return root


def _link(root: _Node) -> None:
    """Point each state to its next shorter one, level by level."""
    level = deque(root.next.values())
    while level:
        node = level.popleft()
        for character, child in node.next.items():
            assert node.shorter is not None
            child.shorter = node.shorter.after(character)
            child.found = child.found or child.shorter.found
            level.append(child)
