"""Settings of the search for neurons: the clean ones, which are the default, and those of NeMo's published code.

Differences of the published code (ml-research/localizing_memorization_in_diffusion_models) from its paper, each a
setting of its own:

- `call=1`: it runs the denoiser twice on the unchanged first noise and uses the second timestep (961 of Stable
  Diffusion's 50), where the paper writes the first step. The first forward is dead work; see `dead_forwards`.
- `data_range=None`: MS-SSIM takes the data range of all pairs compared at once, anew on each scale, so that scores
  depend on what else is compared.
- `slack=0`: where no selection was below the threshold, the last one's score takes its place as it is. What is left
  then hangs on the last bits of a score, and on the machine.
- Candidates may stand twice in a layer's list, as outliers and in the top k; only the first copy is removed when one is
  tried. Both procedures keep this, because it decides which neurons are left.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from memtrain.errors import ConfigurationError

REFINEMENTS = ("greedy", "binary_split", "none")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How neurons are searched.

    Attributes:
        seeds: initial noises per prompt.
        seed: of their one draw.
        steps: sampling steps, which place the timesteps.
        call: index of the timestep at which noise is predicted, always on the first noise.
        data_range: of MS-SSIM; None for that of all pairs at once.
        sequential: prompt by prompt and mask by mask on all seeds, as published.
        dead_forwards: with `sequential`, also the forwards whose result nothing uses, so that timing is comparable.
        initial_theta: standard deviations beyond which a neuron is a candidate at first; None to use the top k alone.
        theta_step: taken off after each try.
        lowest_theta: the last one. Reached exactly, as the published code compares.
        initial_k: neurons of each layer with the highest activation that are candidates too, at first; None to leave
            them out.
        most_k: the number at which the search ends.
        factor: what masked neurons are multiplied by.
        slack: where no selection was below the threshold, how much higher than the last one's score a refined set may
            lie. 0 as published: a neuron without any effect then stays, and rounding decides about many others.
        refinement: `greedy` as published; `binary_split`, which gives other sets with fewer forwards; or `none`.
        sites: glob over the attention sites; None for the default (:mod:`memtrain.localization.predictor`).
    """

    seeds: int = 10
    seed: int = 1
    steps: int = 50
    call: int = 0
    data_range: float | None = 1.0
    sequential: bool = False
    dead_forwards: bool = False
    initial_theta: float | None = 5.0
    theta_step: float = 0.25
    lowest_theta: float = 1.0
    initial_k: int | None = 0
    most_k: int = 1280
    factor: float = 0.0
    slack: float = 1e-4
    refinement: str = "greedy"
    sites: str | None = None

    def __post_init__(self) -> None:
        problems = [
            (self.seeds < 2, f"seeds={self.seeds}", "at least two seeds, whose predictions are compared"),
            (not 0 <= self.call < self.steps, f"call={self.call} of {self.steps}", "one of the sampler's calls"),
            (self.refinement not in REFINEMENTS, f"refinement={self.refinement!r}", f"one of {', '.join(REFINEMENTS)}"),
            (self.initial_theta is None and self.initial_k is None, "neither theta nor k", "at least one of them"),
            (self.sequential and self.refinement == "binary_split", "sequential binary_split", "greedy or none"),
            (self.slack < 0, f"slack={self.slack}", "0 or a small positive number"),
            (self.theta_step <= 0, f"theta_step={self.theta_step}", "a positive number"),
        ]
        for wrong, found, expected in problems:
            if wrong:
                raise ConfigurationError(
                    f"Neurons cannot be searched with {found}", expected=expected, remedy="change the settings"
                )

    @staticmethod
    def published(**changes: Any) -> Settings:
        """Those of the published code, evaluated as there; with `sequential=False` the fast way to the same neurons."""
        return replace(Settings(call=1, data_range=None, slack=0.0, sequential=True), **changes)

    def json(self) -> str:
        """What decides which neurons are found, as text; how they are evaluated is left out."""
        deciding = {name: value for name, value in asdict(self).items() if name not in ("sequential", "dead_forwards")}
        return json.dumps(deciding, sort_keys=True)
