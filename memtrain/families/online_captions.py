"""Captions that came again, in bounded memory: which samples share one.

A caption family is named by the key that came first with the caption. A sample's first caption is its own, whatever an
augmentation makes of it later. Of captions that are known by token ids or embeddings alone it cannot be seen which one
is the empty one, which stands for many when captions are dropped: one that more than :data:`COMMON` of the samples come
with counts as that, and names no family.

Cost: some 150 bytes a caption and a key. Cannot: know a caption again that has been forgotten meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

COMMON, COMMON_KEYS = 0.05, 200
"""Share of the samples, and number of all, beyond which a caption that cannot be read counts as empty."""
UNREAD = "~"
"""First letter of the name of a caption that cannot be read."""


class OnlineCaptions:
    """Caption families of the samples met so far.

    Args:
        limit: captions that are remembered; those not met for longest are forgotten first.
        picture: name of a sample's picture.
    """

    def __init__(self, limit: int, *, picture: Callable[[str], str]) -> None:
        self.limit, self.picture = limit, picture
        self.first: dict[str, str] = {}
        self._known: set[str] = set()
        self._name: dict[str, str] = {}
        self._sharing: dict[str, list[str]] = {}
        self._several: set[str] = set()
        self._empty: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether a sample's caption is known."""
        return key in self._known

    def name(self, key: str) -> str:
        """Name of the sample's caption family; its own where no other picture has its caption."""
        name = self._name.get(key, key)
        return name if name in self._several else key

    def members(self, name: str) -> Sequence[str]:
        """Keys of a caption family, its name first."""
        return (name, *self._sharing.get(name, ())) if name in self._several else (name,)

    def with_caption(self, caption: str | None) -> list[str]:
        """Keys of the samples that came with a caption; empty if none did."""
        first = self.first.get(caption) if caption is not None else None
        return [] if first is None else [first, *self._sharing.get(first, ())]

    def add(self, key: str, caption: str, *, samples: int) -> None:
        """A sample came with a caption, one of so many samples."""
        if key in self._known or caption in self._empty:
            return
        self._known.add(key)
        # Reinserted, so that captions stand in the order in which they were met last.
        name = self.first.pop(caption, key)
        self.first[caption] = name
        if name != key:
            self._name[key] = name
            self._sharing.setdefault(name, []).append(key)
            if self.picture(key) != self.picture(name):
                self._several.add(name)
            if caption.startswith(UNREAD) and samples >= COMMON_KEYS and len(self._sharing[name]) > COMMON * samples:
                self._empty.add(caption)
                del self.first[caption]
                self._dissolve(name)
        if len(self.first) > self.limit:
            del self.first[next(iter(self.first))]

    def _dissolve(self, name: str) -> None:
        for key in self._sharing.pop(name, []):
            del self._name[key]
        self._several.discard(name)

    def forget(self, key: str) -> None:
        """Forget a sample; a family goes with its last member beside the first."""
        self._known.discard(key)
        name = self._name.pop(key, None)
        if name is not None:
            self._sharing[name].remove(key)
            if not self._sharing[name]:
                self._dissolve(name)

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "first": dict(self.first),
            "known": sorted(self._known),
            "name": dict(self._name),
            "several": sorted(self._several),
            "empty": sorted(self._empty),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.first, self._name, self._sharing = dict(state["first"]), dict(state["name"]), {}
        self._known, self._several, self._empty = (set(state[name]) for name in ("known", "several", "empty"))
        for key, name in self._name.items():
            self._sharing.setdefault(name, []).append(key)
