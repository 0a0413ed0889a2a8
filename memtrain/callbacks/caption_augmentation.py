"""Caption augmentation: some visits see another caption, so that no caption stands for one image alone.

Source: Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models", NeurIPS 2023: random tokens added
(`add`, 2 tokens), the caption replaced by random tokens (`replace`, 4), words of the caption repeated (`repeat`, 2). As
published, each acts with probability 0.1. Here they act on tokens rather than words, and on the device. Their other
two, several captions per image and noise on the embeddings, are not built.

Cost: none. Suggested: `replace` on all samples as published, or `samples: flagged` with probability 1. Cannot: help
where the images alone are memorized. An augmented visit is evidence like any other, although its caption is not the one
that the base model was measured with, which adds noise to the entropy.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import Flags, Mitigation
from memtrain.errors import ConfigurationError
from memtrain.models.transfer import to_device

TOKENS = {"add": 2, "replace": 4, "repeat": 2}
"""Tokens of the published settings."""


class CaptionAugmentation(Mitigation):
    """Change the captions of some visits.

    Args:
        kind: `add` random tokens, `replace` the caption by random tokens, `repeat` tokens of the caption.
        probability: share of the visits that are changed.
        tokens: how many; default as published.
        samples: change visits of `flagged` samples or of `all`.
        vocabulary: random tokens are drawn below this id; default all but CLIP's two special ones.
        seed: of all choices.
    """

    def __init__(
        self,
        kind: Literal["add", "replace", "repeat"] = "replace",
        *,
        probability: float = 0.1,
        tokens: int | None = None,
        samples: Literal["flagged", "all"] = "all",
        vocabulary: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < probability <= 1 or (tokens is not None and tokens < 1):
            raise ConfigurationError(
                f"probability={probability}, tokens={tokens}",
                expected="a probability above 0 up to 1, at least one token",
                remedy="change them",
            )
        self.kind, self.probability, self.samples = kind, probability, samples
        self.tokens = TOKENS[kind] if tokens is None else tokens
        self.vocabulary, self.seed = vocabulary, seed

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Change `input_ids` and `prompt_length` of the batch."""
        missing = [name for name in ("input_ids", "prompt_length") if name not in batch]
        if missing:
            raise ConfigurationError(
                f"CaptionAugmentation needs the captions' tokens, but the batch has no {missing}",
                expected="`input_ids` and `prompt_length` in every batch",
                remedy="do not cache text embeddings, or leave CaptionAugmentation out",
            )
        vocabulary = self.vocabulary or (len(tokenizer) - 2 if tokenizer is not None else None)
        if vocabulary is None:
            raise ConfigurationError(
                "CaptionAugmentation does not know how many tokens there are",
                expected="a module with a tokenizer, or `vocabulary`",
                remedy="set vocabulary",
            )
        ids, length = batch["input_ids"], batch["prompt_length"]
        generator = torch.Generator(ids.device).manual_seed(self.seed * 1_000_003 + number)
        changed = torch.rand(len(ids), generator=generator, device=ids.device) < self.probability
        if self.samples == "flagged":
            changed = changed & to_device(flags.ever, ids.device)
        new, new_length = augment(ids, length, self.kind, self.tokens, vocabulary=vocabulary, generator=generator)
        batch["input_ids"] = torch.where(changed[:, None], new, ids)
        batch["prompt_length"] = torch.where(changed, new_length, length)


def augment(
    ids: Tensor, length: Tensor, kind: str, tokens: int, *, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Changed captions, under the layout `BOS words EOS padding`.

    Args:
        ids: `(B, T)` int64.
        length: `(B,)` tokens of each caption with BOS and EOS.
        kind: `add`, `replace` or `repeat`.
        tokens: how many; fewer where the caption would not fit.
        vocabulary: random tokens are drawn below this id.
        generator: on the device of `ids`.

    Returns:
        `input_ids` and `prompt_length` as before.
    """
    count, device = ids.shape[1], ids.device
    position = torch.arange(count, device=device)
    drawn = torch.randint(vocabulary, (len(ids), count), generator=generator, device=device)
    if kind == "replace":
        tokens = min(tokens, count - 2)
        last = torch.full_like(length, tokens + 1)
        words = torch.where((position > 0) & (position < last[:, None]), drawn, ids[:, :1])
        return _end(words, last, ids, length), last + 1
    for turn in range(tokens):
        spread = torch.rand(2, len(ids), generator=generator, device=device)
        # Between BOS and EOS there are `length - 1` places to insert at, and `length - 2` tokens to repeat.
        place = 1 + (spread[0] * (length - 1)).long()
        chosen = 1 + (spread[1] * (length - 2)).long()
        token = drawn[:, turn] if kind == "add" else ids.gather(1, chosen[:, None])[:, 0]
        fits = (length < count) if kind == "add" else (length < count) & (length > 2)
        before = torch.where(position < place[:, None], ids, ids.roll(1, dims=1))
        inserted = torch.where(position == place[:, None], token[:, None], before)
        ids, length = torch.where(fits[:, None], inserted, ids), torch.where(fits, length + 1, length)
    return ids, length


def _end(words: Tensor, last: Tensor, ids: Tensor, length: Tensor) -> Tensor:
    """Put EOS at `last` and padding behind it, the tokens that `ids` has there."""
    position = torch.arange(ids.shape[1], device=ids.device)
    eos = ids.gather(1, (length - 1)[:, None])
    padding = torch.where((length < ids.shape[1])[:, None], ids[:, -1:], eos)
    return torch.where(position < last[:, None], words, torch.where(position == last[:, None], eos, padding))
