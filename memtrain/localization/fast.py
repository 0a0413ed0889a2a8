"""The search for neurons with all savings that do not change its result.

The decisions are those of NeMo (:mod:`memtrain.localization.selection`, :mod:`memtrain.localization.refinement`). Each
distinct mask is evaluated once, on the kept seeds. Many masks share one denoiser call, and their common stages are
computed once. Masks that are probably needed next are evaluated ahead. One seed above the threshold decides on a mask
without the other seeds (:mod:`memtrain.localization.speculation`). Activations are read from the text embeddings.

Cost: benchmarks/RESULTS.md, "Finding neurons".
"""

from __future__ import annotations

import time

import torch
from torch import nn

from memtrain.localization.asking import refinement_timestep
from memtrain.localization.found import Found
from memtrain.localization.mask_scores import MaskScores
from memtrain.localization.predictor import Predictor
from memtrain.localization.published import upper_pairs
from memtrain.localization.refinement import Refinement, largest_bump
from memtrain.localization.selection import Lists, Selection, mask_of
from memtrain.localization.settings import Settings
from memtrain.localization.speculation import follow
from memtrain.localization.statistics import ActivationStatistics

SELECTIONS_BELOW = 0.3
"""Expected share of selections below the threshold, before any is known."""
REFINEMENTS_BELOW = 0.8
"""Expected share of dispensable neurons, before any is known; the paper keeps 4 of 27."""


class FastSearch:
    """Finds the neurons of prompts, one after the other.

    Args:
        predictor: the model, in evaluation mode.
        sites: the searched layers.
        settings: the settings of the search.
        statistics: the statistics of other prompts' activations.
        threshold: the similarity above which a seed counts as memorized.
        batch_size: the number of images in one denoiser call; by default the predictor's.
        worth: the smallest probability of being needed for which a mask is evaluated ahead; above 1 for none. By
            default 0.3 for latents of up to 32 x 32, where the fixed cost of a call dominates, and 0.8 for larger ones.
        share: whether common stages of masks are computed once.
    """

    def __init__(
        self,
        predictor: Predictor,
        sites: dict[str, nn.Module],
        settings: Settings,
        *,
        statistics: ActivationStatistics,
        threshold: float,
        batch_size: int | None = None,
        worth: float | None = None,
        share: bool = True,
    ) -> None:
        self.predictor, self.sites, self.settings = predictor, sites, settings
        self.statistics, self.threshold = statistics, threshold
        self.worth = (0.3 if predictor.small else 0.8) if worth is None else worth
        size = predictor.batch_size if batch_size is None else batch_size
        self._masks = MaskScores(predictor, sites, settings, batch_size=size, share=share)

    @torch.no_grad()
    def locate(self, prompt: str) -> Found:
        """Find the neurons of one prompt."""
        start = time.perf_counter()
        matrix = self._masks.begin(prompt)
        highest = matrix.amax(dim=1)
        kept = highest > self.threshold
        found: dict[str, object] = {}
        if bool(kept.any()):
            self._masks.keep(kept)
            found = self._search(prompt)
        return Found(
            prompt=prompt,
            similarity=float(highest.max()),
            kept_seeds=int(kept.sum()),
            calls=self._masks.calls,
            images=self._masks.images,
            seconds=time.perf_counter() - start,
            pairs=upper_pairs(matrix),
            **found,  # type: ignore[arg-type]
        )

    def _search(self, prompt: str) -> dict[str, object]:
        masks, settings = self._masks, self.settings
        activation = {
            site: values[0].cpu() for site, values in self.predictor.activations([prompt], self.sites).items()
        }
        z = self.statistics.z_scores(activation, list(self.sites))
        limit = self.threshold if settings.selection_threshold is None else settings.selection_threshold
        selection = follow(
            Selection.begin(z, [activation[site] for site in self.sites], settings),
            masks,
            below=lambda score: not score > limit,
            expected=SELECTIONS_BELOW,
            worth=self.worth,
        )
        initial = selection.hypothesis()
        initial_score = masks.score(mask_of(initial))
        threshold = limit if settings.refinement_threshold is None else settings.refinement_threshold
        if selection.exhausted:
            initial_score = masks.settle(mask_of(initial))
            threshold = initial_score + settings.slack
        refined, rule = initial, str(settings.refinement)
        asked, timestep = self.predictor.timesteps[settings.call], refinement_timestep(self.predictor, settings)
        if rule != "none":
            if timestep != asked:
                masks.at(timestep)
            refined, rule = self._refine(initial, threshold, exhausted=selection.exhausted)
            if timestep != asked:
                masks.at(asked)
        return {
            "initial": initial,
            "initial_score": initial_score,
            "theta": selection.theta,
            "k": selection.k,
            "refinement_threshold": threshold,
            "refined": refined,
            "score": masks.score(mask_of(refined)),
            "refinement": rule,
        }

    def _refine(self, initial: Lists, threshold: float, *, exhausted: bool) -> tuple[Lists, str]:
        """Return the remaining neurons, and the rule that found them."""
        settings, rule = self.settings, self.settings.refinement

        def refined(*, binary: bool, margin: float = 0.0) -> Lists:
            return follow(
                Refinement.begin(initial, binary=binary, margin=margin),
                self._masks,
                below=lambda score: score < threshold,
                expected=REFINEMENTS_BELOW,
                worth=self.worth,
            ).lists

        if rule == "binary_split":
            return refined(binary=True), rule
        # If the threshold is the score of the first selection, no group lies a margin below it.
        if rule == "checked_split" and not exhausted:
            found = refined(binary=True, margin=settings.split_margin)
            inside = mask_of(initial)
            scored = {mask: seeds for mask, seeds in self._masks.scored.items() if mask <= inside}
            if largest_bump(scored) <= settings.split_margin:
                return found, rule
        return refined(binary=False), "greedy"
