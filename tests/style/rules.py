"""The rules that prose is held to, each a function from one sentence to the findings in it.

CONTRIBUTING.md explains the rules with sentences before and after. The rules leave a sentence alone when in doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORDS_OF_A_SENTENCE = 35

CODE = "CODE"
"""The word that stands for a piece of code, a link's address or a formula."""

ABBREVIATIONS = re.compile(
    r"(?:\b(?:e\.g|i\.e|et al|etc|vs|cf|approx|no|fig|eq|sec|resp|incl)|\b[A-Z])\.$", re.IGNORECASE
)
END = re.compile(r"[.!?][)\"'”’*_]*(?=\s+(?:[\"'“‘(*_]*[A-Z0-9]|\[))")
SEVERAL_CODES = re.compile(rf"{CODE}(?:(?:,|/| and| or|, and|, or)\s*{CODE})+")
PARENTHESES = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|[\"“][^\"”]*[\"”]")
CITATION = re.compile(r"\([^()]*\b(?:19|20)\d\d\b[^()]*\)|[\"“][A-Z][^\"”]{15,}[\"”]")
LABEL = re.compile(r"^\W*[A-Z][\w-]*(?: [\w-]+)?:\s")
JOINT = re.compile(r"[;:](?=\s+\S)")

OPENING = re.compile(
    r"^[\W_]*(?:Of(?! course)|Below|Besides?|What(?:ever|soever)?|Which|Whoever|That which|Those that)\b(?![-_.])"
)
NO_NOUN = re.compile(r"^(?:of|to|by|with|for|at|in which|from which|as which|by which|of which)\s")

RIDDLES = {
    "that which": "name the thing",
    "those that": "name the things, or: the ones that",
    "those which": "name the things",
    "what is there": "name the things",
    "as said": "repeat the name",
    "as of": "like, or: the same as",
    "so that none": "so that no <thing>",
    "none but": "only",
    "nothing but": "only",
    "no other than": "only",
    "besides": "also, or: as well",
    "likewise": "the same, also",
    "and the like": "such as, before the examples",
    "anew": "again, or: from the start",
    "whoever": "a person who, or: you",
    "whatsoever": "at all",
    "thereof": "of it",
    "thereby": "so, or: in this way",
    "therein": "in it",
    "wherein": "in which",
    "whereby": "by which",
    "hitherto": "until now",
    "henceforth": "from now on",
    "albeit": "although",
    "lest": "so that ... not",
    "nought": "nothing",
    "amongst": "among",
    "whilst": "while",
    "upon": "on",
    "yonder": "there",
    "one's own": "your own",
    "of somebody's own": "your own",
    "as many as there are": "all",
}
RIDDLE = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, RIDDLES))})(?![\w-])", re.IGNORECASE)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of a paragraph, each with the place where it begins."""
    start = 0
    for match in END.finditer(text):
        if ABBREVIATIONS.search(text[start : match.start() + 1]):
            continue
        yield from stripped(text, start, match.end())
        start = match.end()
    yield from stripped(text, start, len(text))


def stripped(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    """A part of a text without the space around it, and where it begins; none if nothing is left."""
    part = text[start:end]
    if part.strip():
        yield start + len(part) - len(part.lstrip()), part.strip()


def words(sentence: str) -> int:
    """How many words a sentence has; a list of names in code counts as one, the source in parentheses as none."""
    sentence = SEVERAL_CODES.sub(CODE, CITATION.sub("", sentence))
    return sum(any(map(str.isalnum, word)) for word in sentence.split())


def joints(sentence: str) -> int:
    """How many colons and semicolons join clauses; a label at the start, parentheses and quotations do not count."""
    while PARENTHESES.search(sentence):
        sentence = PARENTHESES.sub("", sentence)
    return len(JOINT.findall(LABEL.sub("", sentence)))


def findings(sentence: str, *, entry: bool = False) -> Iterator[str]:
    """The rules that a sentence breaks, in words.

    Args:
        sentence: the sentence, with code replaced by `CODE`.
        entry: whether it begins an entry of `Args:` or `Attributes:`.
    """
    sentence = " ".join(sentence.split())
    if (count := words(sentence)) > WORDS_OF_A_SENTENCE:
        yield f"{count} words, {WORDS_OF_A_SENTENCE} at most: make two sentences"
    question = sentence.rstrip("*_)\"'”’ ").endswith("?")
    if (match := OPENING.match(sentence)) and not question:
        yield f'begins with "{match[0].strip()}": begin with the subject'
    if (count := joints(sentence)) > 1:
        yield f"{count} colons or semicolons join clauses, 1 at most: make sentences of them"
    if entry and (match := NO_NOUN.match(sentence)):
        yield f'an entry that begins with "{match[0].strip()}": begin with a noun that names the thing'
    for match in RIDDLE.finditer(sentence):
        yield f'"{match[0]}": write {RIDDLES[match[0].lower()]}'
