"""Captions that are one caption: equal after normalisation, or nearly equal by their words.

What: text is normalised (Unicode NFKC, case, punctuation, whitespace). Two captions are nearly equal when their sets of
words have a Jaccard similarity of at least :data:`LEVEL`. Candidates come from an inverted index over each caption's
rarest words (prefix filter), so no two captions without a rare word in common are compared; a family keeps the
captions that are near its most connected member.
Source: Chaudhuri, Ganti and Kaushik, "A Primitive Operator for Similarity Joins in Data Cleaning" (ICDE 2006), for
the prefix filter, which misses no pair.
Suggested: the default level, which is strict. Captions made from a template ("clip art of a red flag" and "clip art of
a red fish") share most of their words and mean different pictures; one word of eight that differs gives 7 / 9 = 0.78.
So below :data:`SHORTEST` words nothing but equality counts, and above them about one word in twelve may differ.
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
"""Jaccard similarity from which captions are nearly equal."""
SHORTEST = 6
"""Words below which only equal captions are one."""


def normalise(caption: str) -> str:
    """The caption in lower case, its words separated by single spaces, without punctuation.

    A caption of punctuation alone is kept as it is, in one form of Unicode.
    """
    text = unicodedata.normalize("NFKC", caption).casefold()
    # Combining marks belong to their letter: without them, words of many scripts would fall apart.
    kept = "".join(letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else " " for letter in text)
    return " ".join(kept.split()) or " ".join(text.split())


def caption_families(captions: Sequence[str], *, level: float | None = LEVEL) -> NDArray[np.int64]:
    """For each of n captions the index of the first of its family, `(n,)`.

    An empty caption belongs to nobody: it is no statement that two pictures share.

    Args:
        captions: as the data have them.
        level: Jaccard similarity of the words of nearly equal captions; None for equal ones only.

    Raises:
        ConfigurationError: if the level is not above 0.5 and at most 1.
    """
    if level is not None and not 0.5 < level <= 1:
        raise ConfigurationError(
            f"The level of near-equal captions is {level}",
            expected="above 0.5 and at most 1, or None",
            remedy=f"use {LEVEL}",
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
    """All pairs of sets of words whose Jaccard similarity is at least `level`.

    Args:
        words: n sets; those of fewer than :data:`SHORTEST` words are left out.
        level: above 0.

    Returns:
        `(m, 2)` pairs, smaller index first, in order, and their similarity `(m,)`.
    """
    frequency = Counter(word for caption in words for word in caption)
    index: dict[str, list[int]] = defaultdict(list)
    found: list[tuple[int, int, float]] = []
    # By size: two sets can only be alike if the smaller one has at least `level` times the words of the larger.
    for at in sorted(range(len(words)), key=lambda i: (len(words[i]), i)):
        own = words[at]
        if len(own) < SHORTEST:
            continue
        # Two sets with that much in common share one of their rarest words.
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
    """Words in common over words of either."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
