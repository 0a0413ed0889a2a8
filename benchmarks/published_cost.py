"""The cost of the papers' benchmark of 500 prompts, in rows through the denoiser, computed from its settings.

A row is one latent in one denoiser call, so that a guided call of an image counts two. Backward passes are counted as
two rows more. Nothing here is measured but the assumptions on a prompt's neurons, which the search alone can say:
:class:`Neurons` holds those of the paper, and a rehearsal puts in what it found.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from experiment import ROOT

from memtrain.evaluation.measures.fidelity import retrieved
from memtrain.evaluation.stages.localize.conditions import OTHERS
from memtrain.evaluation.stages.localize.stage import Localize
from memtrain.localization.retrigger import retrigger
from memtrain.localization.settings import Settings

PUBLISHED = ROOT / "configs" / "localize" / "published.yaml"
DETECTION = {"images_per_prompt": 4, "steps": 50, "guidance_scale": 7.5}
"""Settings of the one-step detection of Wen et al. (ICLR 2024)."""
CONDITIONS = 3
"""Images without masks, under each prompt's mask, and under all masks together."""


@dataclass(frozen=True)
class Neurons:
    """The average work of a search for a prompt whose image it finds.

    Attributes:
        selections: that are tried; 17 at most with the published settings.
        layers: that have candidates; Stable Diffusion 1 has 7 that are searched.
        neurons: that the refinement tries; 27 in the first selection, on average, in the paper.
    """

    selections: float = 9
    layers: float = 7
    neurons: float = 27


@dataclass(frozen=True)
class Counts:
    """The amount of work.

    Attributes:
        prompts: number of different prompts.
        searched: number of prompts whose neurons are searched.
        memorized: number of searched prompts with seeds above the threshold.
        captions: number of captions that calibrate the threshold.
        conditions: number of conditions under which images are sampled.
    """

    prompts: int = 500
    searched: int = 500
    memorized: int = 500
    captions: int = 50_000
    conditions: int = CONDITIONS


@dataclass(frozen=True)
class Published:
    """The published settings.

    Attributes:
        settings: the settings of the search.
        images: sampled for each prompt.
        steps: the number of steps of the sampling.
        guidance: whether it is guided.
    """

    settings: Settings
    images: int
    steps: int
    guidance: bool
    detection: Mapping[str, Any] = field(default_factory=lambda: dict(DETECTION))

    @staticmethod
    def read() -> Published:
        """Those of configs/localize/published.yaml."""
        given: dict[str, Any] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
        settings = Settings(**given["settings"])
        if given["published"]:
            settings = settings.as_published()
        return Published(settings, given["images_per_prompt"], given["steps"], given["guidance_scale"] > 1)

    def rows(self, counts: Counts, neurons: Neurons) -> dict[str, float]:
        """Return the rows of every stage by name, in their order; `metrics` has none."""
        halves = 2 if self.detection["guidance_scale"] > 1 else 1
        sampled = counts.prompts + (counts.conditions - 1) * counts.searched
        return {
            "detect": counts.prompts * self.detection["images_per_prompt"] * halves,
            "calibrate": counts.captions * self.settings.seeds * self.asked,
            "localize: search": self.search(counts, neurons),
            "localize: images": sampled * self.images * self.steps * (1 + self.guidance),
            "localize: fidelity": self.fidelity(counts),
            "metrics": 0,
        }

    @property
    def asked(self) -> int:
        """Rows of an image while noise is predicted."""
        return 2 if self.settings.guidance_scale else 1

    def search(self, counts: Counts, neurons: Neurons) -> float:
        """Mask by mask on all seeds: unmasked, each selection, each layer, each neuron, and what is left.

        A prompt without seeds above the threshold costs the first alone.
        """
        elsewhere = self.settings.refinement_steps not in (None, self.settings.steps)
        each = 1 + neurons.selections + elsewhere + neurons.layers + neurons.neurons + 1
        calls = counts.memorized * each + (counts.searched - counts.memorized)
        return calls * self.settings.seeds * self.asked

    def fidelity(self, counts: Counts) -> int:
        """Each image's loss at some timesteps under its own prompt and others, in every condition."""
        if counts.searched <= OTHERS:
            return 0
        timesteps = int(inspect.signature(retrieved).parameters["timesteps"].default)
        return counts.conditions * counts.searched * self.images * (1 + OTHERS) * timesteps

    def retriggered(self, counts: Counts) -> int:
        """The search for embeddings that bring images back, in every condition: forward and backward."""
        draws = int(inspect.signature(retrigger).parameters["draws"].default)
        return counts.conditions * counts.searched * Localize.probe_steps * draws * 3
