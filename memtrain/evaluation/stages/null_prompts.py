"""Null prompts: prompts that a model cannot have seen, made from given prompts, with the same kind and length.

Method: each null prompt keeps the frame of one prompt. The frame is its punctuation, its function words, and the words
that many prompts share ("clip art of a ..., in ... and ..."). Every other word is replaced by a word of another prompt
in the same place: between the same words of the frame, and in the same form (capitals, digits, an ending). No two words
of a null prompt come from one prompt, if there are enough prompts. No null prompt is one of the prompts, or shares more
than half of its words with one of them. The best of several tries is kept, by the difference of its number of tokens
from that of the framing prompt. If the prompts have too few words to exchange, words come from `word_stock.py`.
Source: none for the recipe. `benchmarks/prompt_p_values.py` measures how well it works for each detector.
Cost: milliseconds per prompt, and a call of the tokenizer for each try.
Suggested values: the defaults; another `seed` makes other null prompts.
Cannot: forget whose words it borrows: a model that memorized some of the prompts answers to their rarest words in null
prompts, too, which makes null scores higher and p-values larger. Nor make sense: a null prompt is grammatical more
often than not, and says what nobody would. Nor promise that nobody ever wrote the same words, exchange words in writing
without spaces, or keep a name together.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memtrain.errors import DataError
from memtrain.evaluation.stages.word_stock import FUNCTION_WORDS, stock_for

SHARED = 0.2
"""Smallest share of prompts whose words belong to the frame."""
ENOUGH = 10
"""Smallest number of prompts for which a word can count as shared."""
OVERLAP = 0.5
"""Largest share of its words that a null prompt has in common with one prompt."""
TRIES = 8
"""Number of tries for each null prompt, to match its length."""
PIECES = re.compile(r"(\s*)(\w(?:[\w'’-]*\w)?|[^\w\s])")

Lengths = Callable[[Sequence[str]], Sequence[int]]
"""Function from prompts to their numbers of tokens."""


@dataclass(frozen=True)
class _Piece:
    """A word or sign: the space before it, its text, and whether another word may replace it."""

    space: str
    text: str
    free: bool


def words_of(text: str) -> int:
    """Return the number of words: the length of a prompt without a tokenizer."""
    return len(text.split())


def null_prompts(texts: Sequence[str], count: int, *, lengths: Lengths | None = None, seed: int = 0) -> list[str]:
    """Make null prompts.

    Args:
        texts: the prompts in question; a repeated prompt counts once.
        count: the number of null prompts to make.
        lengths: the function that counts tokens; by default words are counted.
        seed: the seed of the draws; the same arguments make the same prompts.

    Returns:
        `count` different prompts, none of them among `texts`, with the frames of all prompts spread evenly.

    Raises:
        DataError: if the prompts yield fewer null prompts.
    """
    prompts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not prompts or count < 1:
        raise DataError(
            f"{count} null prompts from {len(prompts)} prompts",
            expected="at least one of each",
            remedy="name prompts with --prompts",
        )
    kept = framed_null_prompts(prompts, count, lengths=lengths, seed=seed)
    if len(kept) < count:
        raise DataError(
            f"{len(prompts)} prompts yield {len(kept)} null prompts",
            expected=f"{count} null prompts, made by exchanging words between prompts",
            remedy="name a file of prompts that the model cannot have seen (--null FILE), or a smaller number",
        )
    return [text for text, _ in kept]


def framed_null_prompts(
    prompts: Sequence[str], count: int, *, lengths: Lengths | None = None, seed: int = 0
) -> list[tuple[str, int]]:
    """Make null prompts, each with the index of its framing prompt.

    Args:
        prompts: the different prompts, none of them empty.
        count: the number of null prompts to make.
        lengths: the function that counts tokens; by default words are counted.
        seed: the seed of the draws.

    Returns:
        At most `count` different prompts, each with the index of the prompt whose frame it has.
    """
    measured = lengths or (lambda many: [words_of(one) for one in many])
    recombined = _Recombined(prompts, random.Random(seed))  # noqa: S311 (no secret)
    order = list(range(len(prompts)))
    recombined.draw.shuffle(order)
    targets = [order[number % len(order)] for number in range(count)]
    wanted = dict(zip(order, measured([prompts[row] for row in order]), strict=True))
    best: list[tuple[int, str] | None] = [None] * count
    for _ in range(TRIES):
        unfit = [place for place, found in enumerate(best) if found is None or found[0] > 0]
        made = {place: text for place in unfit if (text := recombined.one(targets[place])) is not None}
        for place, tokens in zip(made, measured(list(made.values())) if made else [], strict=True):
            off, found = abs(tokens - wanted[targets[place]]), best[place]
            if found is None or off < found[0]:
                best[place] = (off, made[place])
    return [(found[1], row) for found, row in zip(best, targets, strict=True) if found is not None]


class _Recombined:
    """Draws null prompts of given prompts."""

    def __init__(self, prompts: Sequence[str], draw: random.Random) -> None:
        self.draw = draw
        words = [{found[2].lower() for found in PIECES.finditer(prompt)} for prompt in prompts]
        spread = Counter(word for each in words for word in each)
        shared = SHARED * len(prompts) if len(prompts) >= ENOUGH else float("inf")
        frame = FUNCTION_WORDS | {word for word, times in spread.items() if times >= shared}
        self.prompts = [
            [
                _Piece(found[1], found[2], found[2][0].isalnum() and found[2].lower() not in frame)
                for found in PIECES.finditer(prompt)
            ]
            for prompt in prompts
        ]
        self.known = {_plain(prompt) for prompt in prompts}
        self.where: dict[str, list[int]] = defaultdict(list)  # prompts by their words
        # Words with their prompts, by the place of the word.
        self.lenders: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
        for row, pieces in enumerate(self.prompts):
            for word in {piece.text.lower() for piece in pieces if piece.free}:
                self.where[word].append(row)
            for at, piece in enumerate(pieces):
                if piece.free:
                    for place in _places(pieces, at):
                        self.lenders[place].append((piece.text, row))

    def one(self, row: int) -> str | None:
        """Make a null prompt with the frame of prompt `row`; None if several draws fail."""
        for attempt in range(6):
            text, words = self._drawn(row, stock=attempt >= 3)
            if words and _plain(text) not in self.known and self._overlap(words) <= OVERLAP:
                self.known.add(_plain(text))
                return text
        return None

    def _drawn(self, row: int, *, stock: bool) -> tuple[str, set[str]]:
        pieces, used, words = self.prompts[row], {row}, set[str]()
        own = {piece.text.lower() for piece in pieces}
        written: list[str] = []
        for at, piece in enumerate(pieces):
            text: str | None = piece.text
            if piece.free:
                text = self._exchanged(pieces, at, used=used, banned=own | words, stock=stock)
                if text is None:
                    return "", set()
                words.add(text.lower())
            written.append(f"{piece.space}{text}")
        return _articles("".join(written).strip()), words

    def _exchanged(
        self, pieces: Sequence[_Piece], at: int, *, used: set[int], banned: set[str], stock: bool
    ) -> str | None:
        """Choose a word for a free piece, and add its prompt to `used`; None if there is no word."""
        for place in () if stock else _places(pieces, at):
            lenders = self.lenders[place]
            for _ in range(min(12, 2 * len(lenders))):
                text, row = self.draw.choice(lenders)
                if row not in used and text.lower() not in banned:
                    used.add(row)
                    return text
        word = pieces[at].text
        if word.isdigit():
            return "".join(self.draw.choice("123456789") for _ in word)
        last = at + 1 == len(pieces) or not pieces[at + 1].free
        options = [one for one in stock_for(word, last=last) if one.lower() not in banned]
        return self.draw.choice(options) if options else None

    def _overlap(self, words: set[str]) -> float:
        """Return the largest share of `words` that one prompt holds."""
        held = Counter(row for word in words for row in self.where.get(word, ()))
        return max(held.values(), default=0) / len(words)


def _places(pieces: Sequence[_Piece], at: int) -> list[tuple[str, ...]]:
    """Describe the place of a word, from the closest description to the loosest."""

    def neighbour(index: int) -> str:
        if not 0 <= index < len(pieces):
            return "|"
        return "·" if pieces[index].free else pieces[index].text.lower()

    before, after, form = neighbour(at - 1), neighbour(at + 1), _form(pieces[at].text)
    return [(before, after, form), (before, "", form), ("", after, form), ("", "", form)]


def _form(word: str) -> str:
    if word.isdigit():
        return f"{len(word)} digits"
    if word.isupper() and len(word) > 1:
        return "CAPITALS"
    if word[0].isupper():
        return "Capital"
    return "doing" if word.endswith("ing") and len(word) > 5 else "word"


def _plain(text: str) -> str:
    """Return the words and signs of a prompt in lower case, by which equal prompts are found."""
    return " ".join(found[2] for found in PIECES.finditer(text.lower()))


def _articles(text: str) -> str:
    """Set `a` or `an` to fit the next word."""
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
    return re.sub(r"\b([Aa])n (?=[^aeiouAEIOU\W])", r"\1 ", text)
