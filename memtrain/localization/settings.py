"""Settings of the search for neurons: the clean ones, which are the default, and those of NeMo's published code.

Differences of the published code (ml-research/localizing_memorization_in_diffusion_models) from its paper, each a
setting of its own:

- `call=1`: it runs the denoiser twice on the unchanged first noise and uses the second timestep (961 of Stable
  Diffusion's 50), where the paper writes the first step. The first forward is dead work; see `dead_forwards`.
- `data_range=None`: MS-SSIM takes the data range of all pairs compared at once, anew on each scale, so that scores
  depend on what else is compared.
- `cropped=True`: the version of torchmetrics that it pins leaves out the borders of the last scale
  (:mod:`memtrain.functional.cropped_similarity`).
- `slack=0`: where no selection was below the threshold, the last one's score takes its place as it is. What is left
  then hangs on the last bits of a score, and on the machine.
- `literal_stop=True`: it ends the selection where theta is 1, whatever `min_theta` (here `lowest_theta`) says. With
  another lowest theta, or steps that jump over 1, only k ends it, at 1,280; without k it would never end, which is
  refused here.
- `refinement_steps=50`: the refinement predicts at the timestep of 50 steps, whatever the number of steps is.
- `swapped_guidance=True`: with `guidance_scale` other than 0 it takes the two halves of a guided prediction for each
  other, so that what counts is g · (without text) + (1 - g) · (with text).
- Candidates may stand twice in a layer's list, as outliers and in the top k; only the first copy is removed when one is
  tried. Both procedures keep this, because it decides which neurons are left.

Its `--no_theta` is `initial_theta=None`, its `--no_top_k` is `initial_k=None`. Its three thresholds are the threshold
of the search (`pairwise_ssim_threshold`), `selection_threshold` and `refinement_threshold`. It predicts under autocast
to float16: `precision="float16"`, on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from memtrain.errors import ConfigurationError

Refinements = Literal["greedy", "checked_split", "binary_split", "none"]
REFINEMENTS: tuple[str, ...] = get_args(Refinements)
LATER_FIELDS = (
    "cropped",
    "guidance_scale",
    "swapped_guidance",
    "precision",
    "literal_stop",
    "selection_threshold",
    "refinement_threshold",
    "relative_refinement",
    "refinement_steps",
    "split_margin",
)
"""Written to a search where they differ from their default, so that a folder of earlier versions goes on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How neurons are searched.

    Attributes:
        seeds: initial noises per prompt.
        seed: of their one draw.
        steps: sampling steps, which place the timesteps.
        call: index of the timestep at which noise is predicted, always on the first noise.
        data_range: of MS-SSIM; None for that of all pairs at once.
        cropped: leave out the borders of the last scale of MS-SSIM, as the published scores do.
        guidance_scale: of classifier-free guidance while noise is predicted; 0 for the prediction with text alone.
        swapped_guidance: with guidance, take the predictions with and without text for each other, as published.
        precision: type that the denoiser computes in, by autocast; None for its own. bfloat16 works on a CPU, float16
            is that of the published code and needs a GPU.
        sequential: prompt by prompt and mask by mask on all seeds, as published.
        dead_forwards: with `sequential`, also the forwards whose result nothing uses, so that timing is comparable.
        initial_theta: standard deviations beyond which a neuron is a candidate at first; None to use the top k alone.
        theta_step: taken off after each try.
        lowest_theta: the last one, with which the selection ends.
        literal_stop: let it end where theta is exactly 1 instead, as published.
        initial_k: neurons of each layer with the highest activation that are candidates too, at first; None to leave
            them out.
        most_k: the number at which the search ends.
        factor: what masked neurons are multiplied by.
        slack: where no selection was below the threshold, how much higher than the last one's score a refined set may
            lie. 0 as published: a neuron without any effect then stays, and rounding decides about many others.
        selection_threshold: similarity that the selection has to fall to; None for the threshold of the search.
        refinement_threshold: similarity that the refinement stays below; None for that of the selection.
        relative_refinement: refine by the relative change of each seed's similarity against the first selection's
            instead, which stays below this; needs `sequential`.
        refinement_steps: sampling steps that place the timestep of the refinement; None for `steps`.
        split_margin: how far below its threshold a checked split wants several neurons at once to lie.
        refinement: `greedy` as published; `checked_split`, which finds the same with fewer forwards as long as scores
            only grow, and goes back to `greedy` where they do not (:mod:`memtrain.localization.refinement`);
            `binary_split` without that check; or `none`.
        sites: glob over the attention sites; None for the default (:mod:`memtrain.localization.predictor`).
    """

    seeds: int = 10
    seed: int = 1
    steps: int = 50
    call: int = 0
    data_range: float | None = 1.0
    cropped: bool = False
    guidance_scale: float = 0.0
    swapped_guidance: bool = False
    precision: Literal["bfloat16", "float16"] | None = None
    sequential: bool = False
    dead_forwards: bool = False
    initial_theta: float | None = 5.0
    theta_step: float = 0.25
    lowest_theta: float = 1.0
    literal_stop: bool = False
    initial_k: int | None = 0
    most_k: int = 1280
    factor: float = 0.0
    slack: float = 1e-4
    selection_threshold: float | None = None
    refinement_threshold: float | None = None
    relative_refinement: float | None = None
    refinement_steps: int | None = None
    split_margin: float = 0.02
    refinement: Refinements = "greedy"
    sites: str | None = None

    def __post_init__(self) -> None:
        problems = [
            (self.seeds < 2, f"seeds={self.seeds}", "at least two seeds, whose predictions are compared"),
            (not 0 <= self.call < self.steps, f"call={self.call} of {self.steps}", "one of the sampler's calls"),
            (self.refinement not in REFINEMENTS, f"refinement={self.refinement!r}", f"one of {', '.join(REFINEMENTS)}"),
            (self.initial_theta is None and self.initial_k is None, "neither theta nor k", "at least one of them"),
            (
                self.sequential and self.refinement in ("binary_split", "checked_split"),
                f"sequential {self.refinement}",
                "greedy or none, which are published; or sequential=False",
            ),
            (
                self.relative_refinement is not None and not self.sequential,
                f"relative_refinement={self.relative_refinement} and sequential=False",
                "sequential=True, as that rule is evaluated mask by mask alone",
            ),
            (
                self.refinement_steps is not None and self.refinement_steps <= self.call,
                f"refinement_steps={self.refinement_steps} and call={self.call}",
                "more steps than that",
            ),
            (
                self.precision not in (None, "bfloat16", "float16"),
                f"precision={self.precision!r}",
                "bfloat16, float16 or None",
            ),
            (
                self.literal_stop and self.initial_k is None and not self._reaches_one(),
                f"theta from {self.initial_theta} by {self.theta_step} to {self.lowest_theta} without k, ending at 1",
                "steps that reach 1 exactly, or literal_stop=False; the published code would never end",
            ),
            (self.split_margin < 0, f"split_margin={self.split_margin}", "0 or a small positive number"),
            (self.slack < 0, f"slack={self.slack}", "0 or a small positive number"),
            (self.theta_step <= 0, f"theta_step={self.theta_step}", "a positive number"),
        ]
        for wrong, found, expected in problems:
            if wrong:
                raise ConfigurationError(
                    f"Neurons cannot be searched with {found}", expected=expected, remedy="change the settings"
                )

    def _reaches_one(self) -> bool:
        """Whether theta is exactly 1 at some try."""
        theta = self.initial_theta
        while theta is not None and theta != 1 and theta > self.lowest_theta:
            theta -= self.theta_step
        return theta == 1

    def exhausted(self, theta: float | None, k: int | None) -> bool:
        """Whether the selection ends with these, whatever the score."""
        if self.literal_stop:
            return theta == 1 or (k is not None and k >= self.most_k)
        return (theta is not None and theta <= self.lowest_theta) or (k is not None and k >= self.most_k)

    @staticmethod
    def published(**changes: Any) -> Settings:
        """Those of the published code, evaluated as there; with `sequential=False` the fast way to the same neurons."""
        return replace(Settings(sequential=True, **PUBLISHED), **changes)

    def as_published(self) -> Settings:
        """These settings, with those that make the published mode as published."""
        return replace(self, **PUBLISHED)

    def json(self) -> str:
        """What decides which neurons are found, as text; how they are evaluated is left out."""
        default = asdict(Settings())
        deciding = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("sequential", "dead_forwards") and (name not in LATER_FIELDS or value != default[name])
        }
        return json.dumps(deciding, sort_keys=True)


PUBLISHED: dict[str, Any] = {
    "call": 1,
    "data_range": None,
    "cropped": True,
    "slack": 0.0,
    "literal_stop": True,
    "swapped_guidance": True,
    "refinement_steps": 50,
}
"""What makes the published mode; the other settings are the same in both."""
