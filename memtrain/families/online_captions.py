"""Captions that come again, in bounded memory: the samples that share a caption.

The name of a caption family is the key that came first with the caption. A sample keeps its first caption, whatever an
augmentation makes of it later. Captions that are known only by token ids or embeddings do not show which one is the
empty one, which many samples have when captions are dropped. A caption of more than :data:`COMMON` of the samples
therefore counts as the empty one, and names no family.

Cost: about 150 bytes a caption and a key. Cannot: recognize a caption that was forgotten meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

COMMON, COMMON_KEYS = 0.05, 200
"""The share and the number of samples above which a caption without readable text counts as empty."""
UNREAD = "~"
"""The first letter of the name of a caption without readable text."""


class OnlineCaptions:
    """Caption families of the samples met so far.

    Args:
        limit: the number of remembered captions; the ones that were not met for longest are forgotten first.
        picture: the function that names a sample's picture.
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
        """Return whether a sample's caption is known."""
        return key in self._known

    def name(self, key: str) -> str:
        """Return the name of the sample's caption family; its own key if no other picture has its caption."""
        name = self._name.get(key, key)
        return name if name in self._several else key

    def members(self, name: str) -> Sequence[str]:
        """Return the keys of a caption family, starting with its name."""
        return (name, *self._sharing.get(name, ())) if name in self._several else (name,)

    def with_caption(self, caption: str | None) -> list[str]:
        """Return the keys of the samples that came with a caption; empty if none did."""
        first = self.first.get(caption) if caption is not None else None
        return [] if first is None else [first, *self._sharing.get(first, ())]

    def add(self, key: str, caption: str, *, samples: int) -> None:
        """Take in the caption of a sample; `samples` is the number of samples so far."""
        if key in self._known or caption in self._empty:
            return
        self._known.add(key)
        # Reinserted, so that captions stand in the order of their last visits.
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
        """Forget a sample. A family ends with its last member except the first."""
        self._known.discard(key)
        name = self._name.pop(key, None)
        if name is not None:
            self._sharing[name].remove(key)
            if not self._sharing[name]:
                self._dissolve(name)

    def state_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            "first": dict(self.first),
            "known": sorted(self._known),
            "name": dict(self._name),
            "several": sorted(self._several),
            "empty": sorted(self._empty),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.first, self._name, self._sharing = dict(state["first"]), dict(state["name"]), {}
        self._known, self._several, self._empty = (set(state[name]) for name in ("known", "several", "empty"))
        for key, name in self._name.items():
            self._sharing.setdefault(name, []).append(key)
