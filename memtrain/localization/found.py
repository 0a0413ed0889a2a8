"""Result of a search for one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memtrain.localization.selection import Lists, mask_of


@dataclass(frozen=True, kw_only=True)
class Found:
    """The neurons of one prompt, and the cost of the search.

    Attributes:
        prompt: the prompt.
        similarity: the highest unmasked similarity between two seeds.
        kept_seeds: the number of seeds above the threshold; a prompt without any does not count as memorized, and has
            no neurons.
        initial: the neurons of the first selection by layer, in the order of the search; a neuron can occur twice.
        initial_score: the highest similarity of a kept seed to itself without these neurons; None without a selection.
        theta: the number of standard deviations at the end of the selection.
        k: the number of top neurons per layer at the end of the selection.
        refinement_threshold: the threshold of the refinement. It is that of the selection, or, if no selection was
            below it, the score of the last selection plus the slack of the settings.
        refined: the remaining neurons.
        score: the highest similarity without the remaining neurons.
        calls: the number of denoiser calls.
        images: the number of images in all calls.
        seconds: the wall time.
        pairs: the unmasked similarity of every pair of seeds: (0, 1), (0, 2), ... (1, 2), ...
        refinement: the rule of the refinement; `greedy` if a checked split had to go back to it.
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
        """Whether any seed is above the threshold."""
        return self.kept_seeds > 0

    def channels(self, sites: Sequence[str], *, initial: bool = False) -> dict[str, list[int]]:
        """Return the refined neurons by site, or those of the first selection, each once; only sites with neurons."""
        per_site = zip(sites, self.initial if initial else self.refined, strict=False)
        return {site: sorted(set(neurons)) for site, neurons in per_site if neurons}

    @property
    def neurons(self) -> int:
        """Number of refined neurons, each counted once."""
        return len(mask_of(self.refined))
