"""Captions that a model cannot have been trained on, of the kind of those that it was: made of the data's own words.

What: the beginning of one caption goes on with the end of another, cut at the same share of their words, so that
length, vocabulary and punctuation stay those of the data. One that the data hold, or that shares most of its words with
one of them, is thrown away. What a model makes
of such captions shows what comes by chance where no picture was held out.
Source: ours. Cost: none, but their images have to be sampled.
Cannot: be made of data with a single caption. A model that brings back its training pictures whatever it is asked for
does so for these captions, too; then nothing is nearer than chance, and nothing can be cleared.
"""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.functional.keyed_draws import hash_numbers

WANTED = 40
"""Made captions: they promise a false-positive rate of one in 41."""
TOO_ALIKE = 0.8
"""Share of the words of two captions that both have, from which on a made one is thrown away."""
TRIES = 50
"""Attempts for each caption that is wanted."""


def made_captions(captions: Sequence[str], *, count: int = WANTED, seed: int = 0) -> list[tuple[str, int]]:
    """Captions that are none of these.

    Args:
        captions: of the data.
        count: how many are wanted.
        seed: which are made.

    Returns:
        Each with the index of the caption that it begins like; fewer than `count` where the words do not suffice.
    """
    texts = list(dict.fromkeys(captions))
    first = {text: captions.index(text) for text in texts}
    known = [_words(text) for text in texts]
    found: dict[str, int] = {}
    for attempt in range(count * TRIES if len(texts) > 1 else 0):
        if len(found) == count:
            break
        begin, end, cut = hash_numbers(f"made caption {seed} {attempt}", 3)
        start, other = texts[int(begin * len(texts))], texts[int(end * len(texts))]
        made = _joined(start.split(), other.split(), 0.3 + 0.4 * cut)
        words = _words(made)
        if start != other and made not in found and not any(_alike(words, one) >= TOO_ALIKE for one in known):
            found[made] = first[start]
    return list(found.items())


def _joined(start: list[str], end: list[str], share: float) -> str:
    """The first `share` of one list of words and the rest of another, at least a word of each."""
    return " ".join([*start[: max(1, round(share * len(start)))], *end[min(len(end) - 1, round(share * len(end))) :]])


def _words(text: str) -> frozenset[str]:
    return frozenset(text.casefold().replace(",", " ").replace(".", " ").split())


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity."""
    return len(one & other) / max(1, len(one | other))
