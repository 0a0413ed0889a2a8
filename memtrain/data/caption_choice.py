"""The caption of a visit: the first of a sample's captions, a random one, or one with its tags in another order.

`random` draws one of all captions for each visit. `shuffle` goes through all captions in a random order before
one comes again. `shuffle_tags` exchanges the places of comma-separated tags except the first ones, as kohya's
`shuffle_caption` and `keep_tokens` do, so a model learns tags rather than one text by heart. Draws are a function of
seed, epoch, key and the number of the visit in its epoch. Records, prompts of an evaluation and all measurements of
samples use the first caption unchanged. Several captions of an image lower its memorization (Somepalli et al.,
"Understanding and Mitigating Copying in Diffusion Models", NeurIPS 2023, arXiv 2305.20086).
Cost: none; shuffled tags are tokenized at each visit, and cannot be cached as text embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from memtrain.data.source import Sample
from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import hash_numbers


@dataclass(frozen=True)
class Captions:
    """The choice and the change of captions.

    Args:
        choose: the choice among each sample's captions: `first`, `random` or `shuffle`.
        trigger: words that are put before every caption, followed by a comma.
        shuffle_tags: whether to shuffle comma-separated tags at every visit.
        keep_tags: the number of tags that stay in front; the trigger is one of them.
        default: the caption of a folder's images that have none, such as "a photo of sks dog"; None refuses such
            images.
    """

    choose: Literal["first", "random", "shuffle"] = "first"
    trigger: str | None = None
    shuffle_tags: bool = False
    keep_tags: int = 1
    default: str | None = None

    def __post_init__(self) -> None:
        if self.keep_tags < 0:
            raise ConfigurationError(
                f"captions.keep_tags={self.keep_tags}",
                expected="at least 0",
                remedy="correct --data.init_args.captions.keep_tags",
            )

    @property
    def vary(self) -> bool:
        """Whether visits of one sample may differ."""
        return self.choose != "first" or self.shuffle_tags

    def triggered(self, sample: Sample) -> Sample:
        """Return the sample with the trigger before each of its captions, unless they begin with it."""
        if not self.trigger:
            return sample
        first, *others = (self._triggered(text) for text in (sample.caption, *sample.alternatives))
        return replace(sample, caption=first, alternatives=tuple(others))

    def _triggered(self, text: str) -> str:
        trigger = (self.trigger or "").strip()
        return text if text == trigger or text.startswith((f"{trigger},", f"{trigger} ")) else f"{trigger}, {text}"

    def number(self, count: int, name: str, *, epoch: int, visit: int, visits: int = 1) -> int:
        """Choose one of `count` captions for a visit.

        Args:
            count: the number of the sample's captions.
            name: the seed and the key, on which the draw depends.
            epoch: the epoch of the visit.
            visit: the number of the visit in the epoch.
            visits: the number of visits of the sample in each epoch.
        """
        if count == 1 or self.choose == "first":
            return 0
        if self.choose == "random":
            return int(hash_numbers(f"caption {name} {epoch} {visit}", 1)[0] * count)
        turn, place = divmod(epoch * visits + visit, count)
        draws = hash_numbers(f"captions {name} {turn}", count)
        return sorted(range(count), key=draws.__getitem__)[place]

    def shuffled(self, text: str, name: str) -> str:
        """Return a caption with its tags in another order, which depends on `name`."""
        tags = [tag.strip() for tag in text.split(",")]
        kept, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        draws = hash_numbers(f"tags {name}", len(rest))
        return ", ".join([*kept, *(rest[place] for place in sorted(range(len(rest)), key=draws.__getitem__))])
