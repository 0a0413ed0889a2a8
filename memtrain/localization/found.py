"""What a search found for one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memtrain.localization.selection import Lists, mask_of


@dataclass(frozen=True, kw_only=True)
class Found:
    """The neurons of one prompt, and what it took to find them.

    Attributes:
        prompt: the prompt.
        similarity: highest similarity between two seeds, unmasked.
        kept_seeds: seeds above the threshold; with none the prompt does not count as memorized and has no neurons.
        initial: neurons of the first selection, per layer in the order of the search, some perhaps twice.
        initial_score: highest similarity of a kept seed to itself with them off; None without a selection.
        theta: standard deviations at which the selection ended.
        k: top neurons per layer at which it ended.
        refinement_threshold: the threshold of the refinement: that of the selection, or, where none was below
            it, the score of the last one tried with the slack of the settings.
        refined: neurons that are left.
        score: highest similarity with those off.
        calls: denoiser calls.
        images: images in all calls together.
        seconds: wall time.
        pairs: similarity of every pair of seeds, unmasked: (0, 1), (0, 2), ... (1, 2), ...
        refinement: how the neurons were refined; `greedy` where a checked split had to go back to it.
    """

    prompt: str
    similarity: float
    kept_seeds: int
    calls: int
    images: int
    seconds: float
    initial: Lists = ()
    initial_score: float | None = None
    theta: float | None = None
    k: int | None = None
    refinement_threshold: float | None = None
    refined: Lists = ()
    score: float | None = None
    pairs: tuple[float, ...] = ()
    refinement: str | None = None

    @property
    def memorized(self) -> bool:
        """Whether any seed lay above the threshold."""
        return self.kept_seeds > 0

    def channels(self, sites: Sequence[str], *, initial: bool = False) -> dict[str, list[int]]:
        """The refined neurons by site, or those of the first selection, each once; sites without any are left out."""
        per_site = zip(sites, self.initial if initial else self.refined, strict=False)
        return {site: sorted(set(neurons)) for site, neurons in per_site if neurons}

    @property
    def neurons(self) -> int:
        """Refined neurons, each once."""
        return len(mask_of(self.refined))
