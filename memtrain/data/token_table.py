"""The tokens of all captions of a dataset: made in parts, kept small, and read again at the next start.

Each field that the module makes of captions (`input_ids`, `prompt_length`, ...) is one array of the smallest
integers that hold it. A tokenizer's own lists take 12 kB of memory a caption, so a few thousand captions are tokenized
at a time. With a folder, the arrays are written to it and mapped from there, so that all processes of a machine share
them. The next start reads them if captions and tokenizer are the same. A hash identifies the captions. The tokens of
some of the captions identify the tokenizer.
Cost: 2 bytes a token if the vocabulary has fewer than 32,768 words, else 4; 60 us a caption, once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.files.text import read_json_object
from memtrain.files.whole import folder_whole
from memtrain.functional.tokens import Tokenizer, tokenize

Tokens = Callable[[Sequence[str]], dict[str, Tensor]]
"""The function from B captions to the fields of a batch that hold token ids, each `(B, ...)`."""


def tokens_by(tokenizer: Tokenizer) -> Tokens:
    """Make the function from captions to `input_ids` `(B, T)` and `prompt_length` `(B,)`, by one tokenizer."""
    return partial(_tokens, tokenizer)


def _tokens(tokenizer: Tokenizer, captions: Sequence[str]) -> dict[str, Tensor]:
    input_ids, mask = tokenize(tokenizer, captions)
    return {"input_ids": input_ids, "prompt_length": mask.sum(dim=1)}


AT_ONCE = 2048
"""The number of captions that are tokenized together."""
MANY = 5000
"""The smallest number of captions whose tokens are kept."""
COMPARED = 64
"""The number of captions that identify a tokenizer: the first, the last, and some between."""
ABOUT = "about.json"


class TokenTable(Mapping[str, Tensor]):
    """Fields of tokens, by name. Each is `(N, ...)` and may be narrower than the tokenizer's result.

    Args:
        fields: the fields by name.
        types: the types of the tokenizer's result.
    """

    def __init__(
        self, fields: Mapping[str, Tensor] | None = None, types: Mapping[str, torch.dtype] | None = None
    ) -> None:
        self.fields, self.types = dict(fields or {}), dict(types or {})

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def row(self, place: int) -> dict[str, Tensor]:
        """Return the fields of one caption in the tokenizer's types."""
        return {name: values[place].to(self.types[name]) for name, values in self.fields.items()}


def token_table(texts: Sequence[str], tokens: Tokens, *, folder: Path | None = None) -> TokenTable:
    """Return the tokens of captions, either kept ones or new ones.

    Args:
        texts: N captions.
        tokens: the function that makes the tokens.
        folder: the folder of kept tables; None keeps nothing.
    """
    if not len(texts):
        return TokenTable()
    if folder is None or len(texts) < MANY:
        arrays, types = _made(texts, tokens)
        return TokenTable({name: torch.from_numpy(one) for name, one in arrays.items()}, types)
    place = folder / _name(texts, tokens)
    if (found := _read(place, len(texts))) is not None:
        return found
    arrays, types = _made(texts, tokens)
    shutil.rmtree(place, ignore_errors=True)
    with folder_whole(place) as unfinished:
        for name, one in arrays.items():
            np.save(unfinished / f"{name}.npy", one)
        about = {"count": len(texts), "types": {name: str(one).split(".")[1] for name, one in types.items()}}
        (unfinished / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    found = _read(place, len(texts))
    return found or TokenTable({name: torch.from_numpy(one) for name, one in arrays.items()}, types)


def _made(texts: Sequence[str], tokens: Tokens) -> tuple[dict[str, Any], dict[str, torch.dtype]]:
    """Make the arrays, and return them with the types of the tokenizer's result."""
    arrays: dict[str, Any] = {}
    types: dict[str, torch.dtype] = {}
    for start in range(0, len(texts), AT_ONCE):
        fields = tokens([texts[at] for at in range(start, min(start + AT_ONCE, len(texts)))])
        for name, values in fields.items():
            types.setdefault(name, values.dtype)
            part = values.numpy()
            if (
                name in arrays and part.shape[1:] != arrays[name].shape[1:]
            ):  # padded to the longest caption of each part
                whole = tokens(texts)
                return {name: one.numpy() for name, one in whole.items()}, {n: one.dtype for n, one in whole.items()}
            if name not in arrays:
                arrays[name] = np.empty((len(texts), *part.shape[1:]), _narrow(part))
            if not _fits(part, arrays[name].dtype):
                arrays[name] = arrays[name].astype(_narrow(part))
            arrays[name][start : start + len(part)] = part
    return arrays, types


def _narrow(part: Any) -> Any:
    """Return the smallest type for these numbers, which probably fits later ones as well."""
    if part.dtype.kind != "i":
        return part.dtype
    return next((kind for kind in (np.int16, np.int32) if _fits(part, np.dtype(kind))), part.dtype)


def _fits(part: Any, kind: np.dtype[Any]) -> bool:
    if kind.kind != "i" or part.dtype.kind != "i" or not part.size:
        return True
    limits = np.iinfo(kind)
    return bool(limits.min <= part.min() and part.max() <= limits.max)


def _name(texts: Sequence[str], tokens: Tokens) -> str:
    """Return a name of captions and tokenizer: a hash of all captions, and of the tokens of some of them."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    step = max(1, len(texts) // COMPARED)
    for name, values in sorted(tokens([*texts[::step], texts[-1]]).items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:24]


def _read(place: Path, count: int) -> TokenTable | None:
    """Read a kept table; None if it does not exist or is damaged."""
    try:
        about = read_json_object(place / ABOUT, what="tokens", remedy="")
        types = {str(name): getattr(torch, str(kind)) for name, kind in about["types"].items()}
        # Copy on write: nothing writes to the arrays, but torch warns of arrays that cannot be written to.
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in types}
    except (DataError, OSError, ValueError, KeyError, AttributeError, EOFError):
        return None
    if about["count"] != count or any(len(one) != count for one in arrays.values()) or not arrays:
        return None
    return TokenTable({name: torch.from_numpy(one) for name, one in arrays.items()}, types)
