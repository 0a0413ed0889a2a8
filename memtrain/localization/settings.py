"""Settings of the search for neurons: clean defaults, and the settings of NeMo's published code.

The published code (ml-research/localizing_memorization_in_diffusion_models) differs from its paper. Each difference is
a setting:

- `call=1`: it runs the denoiser twice on the unchanged first noise and uses the second timestep (961 of Stable
  Diffusion's 50), where the paper has the first step. The first forward is not used; see `dead_forwards`.
- `data_range=None`: MS-SSIM takes the data range of all pairs compared at once, separately on each scale, so that
  scores depend on the other pairs.
- `cropped=True`: its version of torchmetrics leaves out the borders of the last scale
  (:mod:`memtrain.functional.cropped_similarity`).
- `slack=0`: if no selection was below the threshold, the score of the last selection replaces the threshold without
  slack. The remaining neurons then depend on the last bits of a score, and on the machine.
- `literal_stop=True`: it ends the selection if theta is 1, for any `min_theta` (here `lowest_theta`). With another
  lowest theta, or steps that jump over 1, only k ends the selection, at 1,280. Without k it would never end, so
  memtrain refuses this.
- `refinement_steps=50`: the refinement predicts at the timestep of 50 steps, for any number of steps.
- `swapped_guidance=True`: with `guidance_scale` other than 0 it swaps the two halves of a guided prediction, which
  gives g · (without text) + (1 - g) · (with text).
- Candidates can occur twice in a layer's list, as outliers and in the top k. A trial removes only the first copy. Both
  procedures keep this, because it decides on the remaining neurons.

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
"""Settings that are written to a search only if they are not the default, so that earlier folders go on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a search for neurons.

    Attributes:
        seeds: number of initial noises per prompt.
        seed: seed of their common draw.
        steps: number of sampling steps, which sets the timesteps.
        call: index of the timestep at which noise is predicted, always on the first noise.
        data_range: data range of MS-SSIM; None for the range of all pairs at once.
        cropped: leave out the borders of the last scale of MS-SSIM, like the published scores.
        guidance_scale: scale of classifier-free guidance for the noise prediction; 0 for the prediction with text only.
        swapped_guidance: whether the predictions with and without text are swapped in guidance, like the published
            code.
        precision: type of numbers of the denoiser, by autocast; None for its own type. bfloat16 works on a CPU. float16
            is the type of the published code, and needs a GPU.
        sequential: search prompt by prompt and mask by mask on all seeds, like the published code.
        dead_forwards: whether forwards with unused results run, too, for comparable timing; needs `sequential`.
        initial_theta: first number of standard deviations above which a neuron is a candidate; None to use only the top
            k.
        theta_step: step by which theta falls after each trial.
        lowest_theta: last theta, with which the selection ends.
        literal_stop: end the selection if theta is exactly 1 instead, like the published code.
        initial_k: first number of neurons of each layer with the highest activation that are also candidates; None to
            leave them out.
        most_k: number k at which the search ends.
        factor: factor on masked neurons.
        slack: largest amount by which a refined set can exceed the score of the last selection, if no selection was
            below the threshold. With 0, like the published code, a neuron without effect stays, and rounding decides on
            many others.
        selection_threshold: similarity that the selection has to reach; None for the threshold of the search.
        refinement_threshold: similarity that the refinement stays below; None for that of the selection.
        relative_refinement: largest relative change of each seed's similarity against the first selection, in place of
            the threshold of the refinement; needs `sequential`.
        refinement_steps: number of sampling steps that sets the timestep of the refinement; None for `steps`.
        split_margin: distance below its threshold that a checked split requires for several neurons at once.
        refinement: `greedy` like the published code, `checked_split`, `binary_split` or `none`. `checked_split` finds
            the same with fewer forwards as long as scores only grow, and otherwise returns to `greedy`
            (:mod:`memtrain.localization.refinement`); `binary_split` has no such check.
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
                "sequential=True, because this rule works mask by mask only",
            ),
            (
                self.refinement_steps is not None and self.refinement_steps <= self.call,
                f"refinement_steps={self.refinement_steps} and call={self.call}",
                "more steps than `call`",
            ),
            (
                self.precision not in (None, "bfloat16", "float16"),
                f"precision={self.precision!r}",
                "bfloat16, float16 or None",
            ),
            (
                self.literal_stop and self.initial_k is None and not self._reaches_one(),
                f"theta from {self.initial_theta} by {self.theta_step} to {self.lowest_theta} without k, ending at 1",
                "steps that reach exactly 1, or literal_stop=False, because the published code would never end",
            ),
            (self.split_margin < 0, f"split_margin={self.split_margin}", "0 or a small positive number"),
            (self.slack < 0, f"slack={self.slack}", "0 or a small positive number"),
            (self.theta_step <= 0, f"theta_step={self.theta_step}", "a positive number"),
        ]
        for wrong, found, expected in problems:
            if wrong:
                raise ConfigurationError(
                    f"Neurons cannot be searched with {found}", expected=expected, remedy="change this setting"
                )

    def _reaches_one(self) -> bool:
        """Whether theta is exactly 1 at some trial."""
        theta = self.initial_theta
        while theta is not None and theta != 1 and theta > self.lowest_theta:
            theta -= self.theta_step
        return theta == 1

    def exhausted(self, theta: float | None, k: int | None) -> bool:
        """Whether the selection ends with these values, for any score."""
        if self.literal_stop:
            return theta == 1 or (k is not None and k >= self.most_k)
        return (theta is not None and theta <= self.lowest_theta) or (k is not None and k >= self.most_k)

    @staticmethod
    def published(**changes: Any) -> Settings:
        """Return the settings of the published code; `sequential=False` finds the same neurons faster."""
        return replace(Settings(sequential=True, **PUBLISHED), **changes)

    def as_published(self) -> Settings:
        """Return these settings with the values of the published mode."""
        return replace(self, **PUBLISHED)

    def json(self) -> str:
        """Return the settings that decide on the neurons as text, without those of their evaluation."""
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
"""Settings of the published mode; the other settings are equal in both modes."""
