"""The search of NeMo's published code: prompt by prompt, mask by mask, with every seed each time.

Source: ml-research/localizing_memorization_in_diffusion_models (Hintersdorf et al., NeurIPS 2024). With
:meth:`Settings.published` the neurons are those of that code, with its traps
(:mod:`memtrain.localization.settings`). It is the reference for the fast search, and separate code.
`Settings.dead_forwards` adds the forwards whose results the published code does not use. These are one at the previous
timestep, one per selection for activations that depend only on the text, and the unmasked and masked forwards of the
refinement, whose results are already known.

Cost: (selections + layers + neurons + 2) calls on all seeds; more than twice as many with the dead forwards.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from memtrain.functional.noise import noise_difference, pairwise_similarity, similarity_matrix
from memtrain.localization.asking import asked_as, refinement_timestep
from memtrain.localization.found import Found
from memtrain.localization.predictor import Predictor
from memtrain.localization.selection import Lists, candidates
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.models.neuron_mask import NeuronMask


class PublishedSearch:
    """Finds the neurons of prompts, one after the other.

    Args:
        predictor: the model, in evaluation mode.
        sites: the searched layers.
        settings: the settings of the search.
        statistics: the statistics of other prompts' activations.
        threshold: the similarity above which a seed counts as memorized.
    """

    def __init__(
        self,
        predictor: Predictor,
        sites: dict[str, nn.Module],
        settings: Settings,
        *,
        statistics: ActivationStatistics,
        threshold: float,
    ) -> None:
        self.sites, self.settings = sites, settings
        self.predictor = asked_as(predictor, settings)
        self.statistics, self.threshold = statistics, threshold
        self._calls = self._images = 0

    @torch.no_grad()
    def locate(self, prompt: str) -> Found:
        """Find the neurons of one prompt."""
        start, self._calls, self._images = time.perf_counter(), 0, 0
        plain = self._differences(prompt)
        matrix = similarity_matrix(plain, data_range=self.settings.data_range, cropped=self.settings.cropped)
        highest = matrix.amax(dim=1)
        kept = highest > self.threshold
        plain = plain[kept]
        found: dict[str, object] = {}
        if bool(kept.any()):
            found = self._search(prompt, plain, kept)
        return Found(
            prompt=prompt,
            similarity=float(highest.max()),
            kept_seeds=int(kept.sum()),
            calls=self._calls,
            images=self._images,
            seconds=time.perf_counter() - start,
            pairs=upper_pairs(matrix),
            **found,  # type: ignore[arg-type]
        )

    def _search(self, prompt: str, plain: Tensor, kept: Tensor) -> dict[str, object]:
        settings = self.settings
        theta, k = settings.initial_theta, settings.initial_k
        activation = [values[0].cpu() for values in self.predictor.activations([prompt], self.sites).values()]
        z = self.statistics.z_scores(dict(zip(self.sites, activation, strict=True)), list(self.sites))
        limit = self.threshold if settings.selection_threshold is None else settings.selection_threshold
        threshold = limit if settings.refinement_threshold is None else settings.refinement_threshold
        while True:
            if settings.dead_forwards:
                self._predict(prompt, self.predictor.noise(1, seed=settings.seed), timestep=self.predictor.timesteps[0])
            initial = candidates(z, activation, theta=theta, k=k)
            initial_score = self._score(prompt, plain, kept, initial)
            tried = theta, k
            above = initial_score > limit
            if above and theta is not None and theta > settings.lowest_theta:
                theta -= settings.theta_step
            if above and k is not None:
                k += 1
            if settings.exhausted(theta, k):
                threshold = initial_score + settings.slack
                break
            if not above:
                break
        refined = initial
        if settings.refinement == "greedy":
            refined = self._refine(prompt, plain, kept, initial, threshold)
        return {
            "initial": initial,
            "initial_score": initial_score,
            "theta": tried[0],
            "k": tried[1],
            "refinement_threshold": threshold,
            "refined": refined,
            "score": self._score(prompt, plain, kept, refined),
            "refinement": settings.refinement,
        }

    def _refine(self, prompt: str, plain: Tensor, kept: Tensor, initial: Lists, threshold: float) -> Lists:
        settings = self.settings
        timestep = refinement_timestep(self.predictor, settings)
        if timestep != self.predictor.timesteps[settings.call]:
            plain = self._differences(prompt, timestep)[kept]
        if settings.dead_forwards:
            self._differences(prompt)
            self._score(prompt, plain, kept, initial)
        first = None
        if settings.relative_refinement is not None:
            threshold = settings.relative_refinement
            first = self._similarities(prompt, plain, kept, initial, timestep)

        def dispensable(trial: Lists | list[list[int]]) -> bool:
            found = self._similarities(prompt, plain, kept, trial, timestep)
            if first is not None:
                found = ((found - first) / (first.abs() + 1e-9)).abs()
            return float(found.max()) < threshold

        lists = [list(neurons) for neurons in initial]
        for layer in reversed(range(len(lists))):
            if lists[layer]:
                trial = [[] if place == layer else neurons for place, neurons in enumerate(lists)]
                if dispensable(trial):
                    lists = trial
        for layer in reversed(range(len(lists))):
            for neuron in list(lists[layer]):
                trial = [list(neurons) for neurons in lists]
                trial[layer].remove(neuron)
                if dispensable(trial):
                    lists = trial
        return tuple(map(tuple, lists))

    def _score(self, prompt: str, plain: Tensor, kept: Tensor, lists: Lists | list[list[int]]) -> float:
        return float(self._similarities(prompt, plain, kept, lists).max())

    def _similarities(
        self, prompt: str, plain: Tensor, kept: Tensor, lists: Lists | list[list[int]], timestep: float | None = None
    ) -> Tensor:
        """Compute the similarity of each kept seed to itself."""
        channels = {site: list(neurons) for site, neurons in zip(self.sites, lists, strict=True) if neurons}
        if channels:
            with NeuronMask(channels, factor=self.settings.factor).on(self.predictor.denoiser):
                masked = self._differences(prompt, timestep)
        else:
            masked = self._differences(prompt, timestep)
        settings = self.settings
        return pairwise_similarity(plain, masked[kept], data_range=settings.data_range, cropped=settings.cropped)

    def _differences(self, prompt: str, timestep: float | None = None) -> Tensor:
        noise = self.predictor.noise(self.settings.seeds, seed=self.settings.seed)
        if self.settings.dead_forwards:
            for call in range(self.settings.call):
                self._predict(prompt, noise, timestep=self.predictor.timesteps[call])
        timestep = self.predictor.timesteps[self.settings.call] if timestep is None else timestep
        return noise_difference(self._predict(prompt, noise, timestep=timestep), noise)

    def _predict(self, prompt: str, noise: Tensor, *, timestep: float) -> Tensor:
        count = len(noise)
        self._calls, self._images = self._calls + 1, self._images + count
        timesteps = torch.full((count,), timestep, device=noise.device)
        text = self.predictor.encode([prompt]).expand(count, -1, -1)
        return self.predictor.predict(noise, timesteps, text)


def upper_pairs(matrix: Tensor) -> tuple[float, ...]:
    """Return the similarities of all pairs in a symmetric matrix `(K, K)`, in the order of `torch.combinations`."""
    first, second = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return tuple(matrix.cpu()[first, second].tolist())
