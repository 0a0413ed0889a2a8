"""Captions that count as one caption: equal after normalization, or nearly equal by their words.

Text is normalized (Unicode NFKC, case, punctuation, whitespace). Two captions are nearly equal if their sets of
words have a Jaccard similarity of at least :data:`LEVEL`. Candidates come from an inverted index over each caption's
rarest words (prefix filter), so captions without a common rare word are not compared. A family keeps the captions that
are near its most connected member.
Source: Chaudhuri, Ganti and Kaushik, "A Primitive Operator for Similarity Joins in Data Cleaning" (ICDE 2006), for
the prefix filter, which misses no pair.
Suggested: the default level, which is strict. Captions made from a template ("clip art of a red flag" and "clip art of
a red fish") share most of their words and mean different pictures. One word of eight that differs gives 7 / 9 = 0.78.
So below :data:`SHORTEST` words only equal captions count, and above it about one word in twelve may differ.
Cost: 100,000 captions of 12 words take some seconds. Cannot: see a paraphrase in other words.
"""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from memtrain.errors import ConfigurationError
from memtrain.families.exact import first_equal
from memtrain.families.grouping import DisjointSets, around_representatives

LEVEL = 0.85
"""The Jaccard similarity from which captions are nearly equal."""
SHORTEST = 6
"""The number of words below which only equal captions count as one."""


def normalise(caption: str) -> str:
    """Return the caption in lower case and without punctuation, with single spaces between words.

    A caption that consists of punctuation stays as it is, in one form of Unicode.
    """
    text = unicodedata.normalize("NFKC", caption).casefold()
    # Combining marks belong to their letter. Without them, words of many scripts would fall apart.
    kept = "".join(letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else " " for letter in text)
    return " ".join(kept.split()) or " ".join(text.split())


def caption_families(captions: Sequence[str], *, level: float | None = LEVEL) -> NDArray[np.int64]:
    """Return the index of the first caption of each caption's family, `(n,)`.

    An empty caption belongs to no family, because it says nothing that two pictures could share.

    Args:
        captions: n captions as the data have them.
        level: the Jaccard similarity of the words of nearly equal captions; None counts only equal captions.

    Raises:
        ConfigurationError: if the level is not above 0.5 and at most 1.
    """
    if level is not None and not 0.5 < level <= 1:
        raise ConfigurationError(
            f"The level of nearly equal captions is {level}",
            expected="above 0.5 and at most 1, or None",
            remedy=f"set it to {LEVEL}",
        )
    texts = [normalise(caption) for caption in captions]
    first = first_equal(text or index for index, text in enumerate(texts))
    if level is None:
        return first
    distinct = np.unique(first)
    words = [frozenset(map(sys.intern, texts[index].split())) for index in distinct]
    pairs, similarity = near_equal(words, level)
    sets = DisjointSets(len(distinct))
    for one, other in pairs:
        sets.join(int(one), int(other))
    _, names = around_representatives(
        sets.names(),
        pairs,
        similarity,
        compare=lambda asked: np.array([jaccard(words[a], words[b]) for a, b in asked], dtype=np.float32),
        least=level,
    )
    return distinct[names[np.searchsorted(distinct, first)]]


def near_equal(words: Sequence[frozenset[str]], level: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find all pairs of sets of words with a Jaccard similarity of at least `level`.

    Args:
        words: n sets; sets of fewer than :data:`SHORTEST` words are left out.
        level: the smallest similarity, above 0.

    Returns:
        The pairs `(m, 2)` in order, with the smaller index first, and their similarity `(m,)`.
    """
    frequency = Counter(word for caption in words for word in caption)
    index: dict[str, list[int]] = defaultdict(list)
    found: list[tuple[int, int, float]] = []
    # By size: two sets can only be alike if the smaller one has at least `level` times the words of the larger one.
    for at in sorted(range(len(words)), key=lambda i: (len(words[i]), i)):
        own = words[at]
        if len(own) < SHORTEST:
            continue
        # Two sets with so much in common share one of their rarest words.
        prefix = sorted(own, key=lambda word: (frequency[word], word))[: len(own) - ceil(level * len(own)) + 1]
        for other in {other for word in prefix for other in index[word]}:
            if len(words[other]) >= level * len(own) and (similarity := jaccard(own, words[other])) >= level:
                found.append((min(at, other), max(at, other), similarity))
        for word in prefix:
            index[word].append(at)
    found.sort()
    pairs = np.array([pair[:2] for pair in found], dtype=np.int64).reshape(-1, 2)
    return pairs, np.array([pair[2] for pair in found], dtype=np.float32)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the number of common words over the number of words of both."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
