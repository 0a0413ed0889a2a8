"""Which caption a visit has: the first of a sample's captions, one drawn anew, or its tags in another order.

What: `random` draws one of all captions for each visit, `shuffle` goes through all of them in a random order before any
comes again. `shuffle_tags` exchanges the places of comma-separated tags, but for the first ones, as kohya's
`shuffle_caption` and `keep_tokens` do; a model then learns tags rather than one text by heart. Draws are a function of
seed, epoch, key and the number of the visit in its epoch. Records, prompts of an evaluation and whatever measures
samples have the first caption as it is.
Several captions of an image lower its memorization (Somepalli et al., "Understanding and Mitigating Copying in
Diffusion Models", NeurIPS 2023, arXiv 2305.20086).
Cost: none; shuffled tags are tokenised at each visit, and cannot be cached as text embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from memtrain.data.source import Sample
from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import hash_numbers


@dataclass(frozen=True)
class Captions:
    """How captions are chosen and changed.

    Args:
        choose: `first`, `random`, or `shuffle`, of each sample's captions.
        trigger: words that are put before every caption, separated by a comma.
        shuffle_tags: shuffle comma-separated tags at every visit.
        keep_tags: tags that stay in front, the trigger being one.
        default: caption of the images of a folder that have none, such as "a photo of sks dog"; None refuses them.
    """

    choose: Literal["first", "random", "shuffle"] = "first"
    trigger: str | None = None
    shuffle_tags: bool = False
    keep_tags: int = 1
    default: str | None = None

    def __post_init__(self) -> None:
        if self.keep_tags < 0:
            raise ConfigurationError(f"captions.keep_tags={self.keep_tags}", expected="at least 0", remedy="change it")

    @property
    def vary(self) -> bool:
        """Whether visits of one sample may differ."""
        return self.choose != "first" or self.shuffle_tags

    def triggered(self, sample: Sample) -> Sample:
        """The sample with the trigger before each of its captions, unless it begins with it."""
        if not self.trigger:
            return sample
        first, *others = (self._triggered(text) for text in (sample.caption, *sample.alternatives))
        return replace(sample, caption=first, alternatives=tuple(others))

    def _triggered(self, text: str) -> str:
        trigger = (self.trigger or "").strip()
        return text if text == trigger or text.startswith((f"{trigger},", f"{trigger} ")) else f"{trigger}, {text}"

    def number(self, count: int, name: str, *, epoch: int, visit: int, visits: int = 1) -> int:
        """Which of `count` captions a visit has.

        Args:
            count: captions of the sample.
            name: seed and key, on which the draw depends.
            epoch: of the visit.
            visit: its number in the epoch.
            visits: of the sample in each epoch.
        """
        if count == 1 or self.choose == "first":
            return 0
        if self.choose == "random":
            return int(hash_numbers(f"caption {name} {epoch} {visit}", 1)[0] * count)
        turn, place = divmod(epoch * visits + visit, count)
        draws = hash_numbers(f"captions {name} {turn}", count)
        return sorted(range(count), key=draws.__getitem__)[place]

    def shuffled(self, text: str, name: str) -> str:
        """A caption with its tags in another order, which depends on `name`."""
        tags = [tag.strip() for tag in text.split(",")]
        kept, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        draws = hash_numbers(f"tags {name}", len(rest))
        return ", ".join([*kept, *(rest[place] for place in sorted(range(len(rest)), key=draws.__getitem__))])
