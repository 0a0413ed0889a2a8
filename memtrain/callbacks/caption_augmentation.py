"""Caption augmentation: visits see varied captions, so that no caption belongs to one image only.

Source: Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models", NeurIPS 2023, with their settings:

| `kind` | theirs | what it does |
|---|---|---|
| `multiple` | MC | at every visit one of the image's captions, each as likely as the others; no `probability` |
| `noise` | GN | normal noise times `strength` (0.1) on the text embeddings of every training step; no `probability` |
| `replace` | RC | with `probability` (0.1), random tokens (4) in place of the caption |
| `add` | RT | with `probability` (0.1), random tokens (2) inserted |
| `repeat` | CWR | with `probability` (0.1), tokens (2) of the caption inserted again |

Their code acts on words and decodes random tokens to text. This code uses tokens throughout, and differs in two more
points. An empty caption, which trains the unconditional model, stays empty unless the kind is `noise`. Copies of one
sample within a batch are changed alike, because the random draws depend on seed, batch number and sample key only.

Cost: about 5 µs per sample on the host, for `noise` one draw of the size of the embeddings. Suggested: `multiple` if
there are several captions, or else `replace`, or `samples: flagged` with probability 1. Cannot: help if the images
alone are memorized, or put noise on pooled embeddings, which some denoisers also get. A changed visit is evidence like
any other. The base model was measured with another caption, which adds noise to the entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.data.caption_file import read_captions
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.functional.captions import augment
from memtrain.functional.keyed_draws import normal, seed_of, uniform
from memtrain.models.backbones.base import Backbone
from memtrain.models.observation import Observation
from memtrain.models.text_hook import TextHook
from memtrain.models.transfer import to_device
from memtrain.monitoring.data_protocol import known_samples
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Effects

EMBEDDED = ("text_embeddings", "pooled_embeddings", "text_mask")
"""Fields of a batch with the embeddings of a caption, from a cache."""
TOKENS = {"add": 2, "replace": 4, "repeat": 2, "multiple": 0, "noise": 0}
"""Number of tokens in the published settings."""


class CaptionAugmentation(MitigationCallback):
    """Change the captions of some visits.

    Args:
        kind: `add` random tokens, `replace` the caption by random tokens, `repeat` tokens of the caption, take one of
            `multiple` captions, or put `noise` on the text embeddings.
        probability: share of the visits that `add`, `replace` and `repeat` change.
        tokens: number of tokens; default as published.
        samples: change visits of `flagged` samples or of `all`.
        vocabulary: random tokens are drawn below this id; default all but CLIP's two special ones.
        strength: standard deviation of `noise`.
        captions: path of JSON lines `{"key": ..., "captions": [...]}` with the other captions of training samples, for
            `multiple`; default the captions from the data module's `alternatives()`.
        seed: seed of all random choices.
    """

    def __init__(
        self,
        kind: Literal["add", "replace", "repeat", "multiple", "noise"] = "replace",
        *,
        probability: float = 0.1,
        tokens: int | None = None,
        samples: Literal["flagged", "all"] = "all",
        vocabulary: int | None = None,
        strength: float = 0.1,
        captions: str | None = None,
        seed: int = 0,
    ) -> None:
        if kind not in TOKENS or (captions is not None and kind != "multiple"):
            raise ConfigurationError(
                f"kind={kind!r}, captions={captions!r}",
                expected=f"a kind of {sorted(TOKENS)}, and captions for `multiple` only",
                remedy="set kind to one of these names",
            )
        if not 0 < probability <= 1 or (tokens is not None and tokens < 1) or strength <= 0:
            raise ConfigurationError(
                f"probability={probability}, tokens={tokens}, strength={strength}",
                expected="a probability above 0 up to 1, at least one token, a strength above 0",
                remedy="set such values",
            )
        self.kind, self.probability, self.samples = kind, probability, samples
        self.tokens = TOKENS[kind] if tokens is None else tokens
        self.vocabulary, self.strength, self.captions, self.seed = vocabulary, strength, captions, seed
        self._others: dict[str, tuple[str, ...]] = {}
        self._rows: dict[str, range] = {}
        self._hook: TextHook | None = None
        self._seeds: list[int] = []
        self._chosen = torch.empty(0)
        self._noised = False

    # Before training

    def effects(self) -> Effects:
        """State that the rule changes captions, and with `samples: flagged` only captions of flagged samples."""
        return Effects(changes_batch=True, changes_captions=True, flagged_only=self.samples == "flagged")

    def open(self, host: Host) -> None:
        """Refuse data without tokens, and collect the other captions for `multiple`."""
        data = host.data
        dataset: Any = getattr(data, "train_dataset", None)
        if self.kind != "noise" and hasattr(dataset, "__getitem__") and len(dataset):
            item = dataset[0]
            if isinstance(item, dict):
                _require_tokens(item, "training item")
        if self.kind == "multiple":
            given = read_captions(Path(self.captions)) if self.captions else getattr(data, "alternatives", dict)()
            known = {sample.key for sample in known_samples(data, "train")}
            self._others = {key: tuple(others) for key, others in given.items() if others}
            if not self._others or (known and known.isdisjoint(self._others)):
                raise ConfigurationError(
                    f"No training sample has another caption in {self.captions or type(data).__name__}",
                    expected="several captions for some training samples",
                    remedy="add captions to the data, set captions to a file, or choose another kind",
                )

    def attach(self, denoiser: nn.Module, *, backbone: Backbone, module: Any) -> None:
        """Tokenise the other captions, or put the hook for `noise` on the denoiser."""
        tokenizer = getattr(module, "tokenizer", None)
        if self.kind == "noise":
            self._hook = TextHook(denoiser, backbone, self._add_noise).attach()
        elif self.kind == "multiple":
            self._tokenize(tokenizer)
        else:
            self._vocabulary(tokenizer)

    def _tokenize(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ConfigurationError(
                "CaptionAugmentation cannot read the other captions without a tokenizer of the module",
                expected="a module with the attribute `tokenizer`",
                remedy="add a tokenizer to the module, or choose another kind",
            )
        self._rows = {}
        texts: list[str] = []
        for key, others in self._others.items():
            self._rows[key] = range(len(texts), len(texts) + len(others))
            texts += others
        encoded = tokenizer(
            texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        self._ids, self._lengths = encoded["input_ids"], encoded["attention_mask"].sum(dim=1)

    def _vocabulary(self, tokenizer: Any) -> int:
        if self.kind == "repeat":
            return 1
        if self.vocabulary is None and tokenizer is None:
            raise ConfigurationError(
                "CaptionAugmentation does not know the size of the vocabulary",
                expected="a module with a tokenizer, or `vocabulary`",
                remedy="set vocabulary to the number of tokens",
            )
        return self.vocabulary or len(tokenizer) - 2

    # Each batch

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Change `input_ids` and `prompt_length` of the batch, or get the noise for it ready."""
        keys = flags.keys
        self._seeds = [seed_of(self.seed, self.kind, number, key) for key in keys]
        self._chosen = flags.ever if self.samples == "flagged" else torch.ones(len(keys), dtype=torch.bool)
        if self.kind == "noise":
            self._noised = False
            return
        _require_tokens(batch, "batch")
        ids, length = batch["input_ids"], batch["prompt_length"]
        numbers = uniform(self._seeds, 1 + 3 * self.tokens)
        if self.kind == "multiple":
            changed, new, new_length = self._another(keys, numbers[:, 0], ids)
        else:
            changed, vocabulary = numbers[:, 0] < self.probability, self._vocabulary(tokenizer)
            choices = to_device(numbers[:, 1:].reshape(len(ids), self.tokens, 3), ids.device)
            new, new_length = augment(ids, length, self.kind, uniform=choices, vocabulary=vocabulary)
        changed = to_device(changed & self._chosen, ids.device) & (length > 2)
        batch["input_ids"] = torch.where(changed[:, None], new, ids)
        batch["prompt_length"] = torch.where(changed, new_length, length)
        for field in EMBEDDED:
            # These embeddings belong to the former caption. Without them the module encodes the tokens.
            batch.pop(field, None)

    def _another(self, keys: Sequence[str], numbers: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the samples that get another caption; return that choice, the tokens, their lengths."""
        if ids.shape[1] != self._ids.shape[1]:
            raise ConfigurationError(
                f"The batch holds {ids.shape[1]} tokens per caption, the module's tokenizer makes {self._ids.shape[1]}",
                expected="one tokenizer for data and module",
                remedy="remove the tokenizer from the data module",
            )
        rows = []
        for key, number in zip(keys, numbers.tolist(), strict=True):
            others = self._rows.get(key, range(0))
            choice = int(number * (1 + len(others)))
            rows.append(others[choice - 1] if choice else -1)
        row = torch.tensor(rows, dtype=torch.long)
        tokens, length = self._ids[row], self._lengths[row]
        return row >= 0, to_device(tokens, ids.device), to_device(length, ids.device)

    def _add_noise(self, text: Tensor) -> Tensor:
        if len(text) != len(self._seeds):
            return text
        self._noised = True
        noise = self.strength * normal(self._seeds, text.shape[1:], device=text.device)
        return text + (to_device(self._chosen, text.device)[:, None, None] * noise).to(text.dtype)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return ones, `(B,)`, and refuse a batch whose embeddings did not pass the hook."""
        if self.kind == "noise" and not self._noised:
            raise ProbeError(
                "The text embeddings of this batch got no noise, because the hook on the denoiser did not run",
                expected="the same denoiser in every batch as at the start of training",
                remedy="compile or wrap the denoiser before training starts, and call it only after that",
            )
        return super().weights(observation, flags)

    def batch_done(self) -> None:
        """Switch the noise off, so that forwards between batches get none."""
        self._seeds = []

    def detach(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.detach()
        self._hook, self._seeds = None, []


def _require_tokens(values: Mapping[str, Any], what: str) -> None:
    further = [name for name in ("input_ids_2", "input_ids_3", "prompt_mask") if name in values]
    if further:
        raise ConfigurationError(
            f"CaptionAugmentation changes the tokens of one tokenizer, and the {what} has {', '.join(further)} as well",
            expected="a model with one CLIP text encoder, such as Stable Diffusion 1 or 2, or kind: noise",
            remedy="choose kind: noise, or remove CaptionAugmentation",
        )
    missing = [name for name in ("input_ids", "prompt_length") if name not in values]
    if missing:
        raise ConfigurationError(
            f"CaptionAugmentation needs the captions' tokens, but the {what} has no {missing}",
            expected="`input_ids` and `prompt_length` in every batch",
            remedy="turn off the cache of text embeddings, or remove CaptionAugmentation",
        )
