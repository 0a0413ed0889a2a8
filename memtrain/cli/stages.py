"""The stages of an evaluation beside `measure`, and how to add one.

A stage is a function of a :class:`StageInput` that writes its files to `given.output`, prints what it found and returns
what its JSON file holds. It is added by one line of :data:`STAGES`; what it imports stays inside it, so that the other
stages do not wait for it. All stages of a command share one output folder, so a stage names its files after itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.shards import Shard, read_shard
from memtrain.inference.attention_masking import AttentionMasking
from memtrain.inference.base import InferenceMitigation

MEASURE = "measure"
"""The stage that needs a run's records and training images."""


@dataclass(frozen=True, kw_only=True)
class StageInput:
    """What every stage gets.

    Attributes:
        pipeline: the model, on its device.
        prompts: P prompts, with what is known about them.
        own_images: `(P, 3, H, W)` uint8, the image that belongs to each prompt; None unless the prompts are a run's.
        output: folder to write to; it may hold files of other stages.
        model: where the pipeline comes from.
        seeds: K seeds; each prompt is sampled with every one.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        detectors: for the stage that scores prompts.
        false_positive_rate: probability that a prompt never trained on counts as reproduced; None for the lowest that
            the prompts can promise, 0.01 at the lowest.
        sites: glob over the attention sites whose neurons `localize` searches; None for its default.
        contribution: share of all neurons that `localize` masks by what they add; None for NeMo's search.
        bake: where `localize` saves a pipeline with all masks in its weights; None for nowhere.
        shard: this process's part of the prompts, for stages in :data:`SHARED`; None to merge all parts.
        mitigation: for the stage that measures one.
        clip: folder of a CLIP model that judges fidelity to prompts, if there is one.
    """

    pipeline: DiffusionPipeline
    prompts: Sequence[PromptToScore]
    own_images: Tensor | None
    output: Path
    model: str
    seeds: Sequence[int]
    steps: int
    guidance_scale: float
    batch_size: int
    detectors: Sequence[Detector]
    false_positive_rate: float | None = None
    sites: str | None = None
    contribution: float | None = None
    bake: str | None = None
    shard: Shard | None = None
    mitigation: InferenceMitigation = field(default_factory=AttentionMasking)
    clip: str | None = None

    @property
    def common(self) -> dict[str, Any]:
        """The options that every stage's function takes by the same names."""
        names = ("output", "model", "seeds", "steps", "guidance_scale", "batch_size")
        return {name: getattr(self, name) for name in names}


def _detect(given: StageInput) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from memtrain.evaluation.stages.detect.detect import detect
    from memtrain.evaluation.stages.detect.section import print_detection

    results = detect(
        given.pipeline,
        given.prompts,
        detectors=given.detectors,
        **given.common,
        shard=given.shard,
    )
    if results is None:
        print(
            f"Part {given.shard} of the prompts is scored; others are not yet. Whoever finishes last writes the "
            f"results to {given.output}. If none does, run this again with --shard merge."
        )
        return {}
    print_detection(results, pq.read_table(given.output / "prompts.parquet"), given.output)
    return results


def _mitigate(given: StageInput) -> dict[str, Any]:
    from memtrain.evaluation.stages.mitigate.mitigate import mitigate
    from memtrain.evaluation.stages.mitigate.section import print_mitigation

    results = mitigate(
        given.pipeline,
        given.prompts,
        mitigation=given.mitigation,
        own_images=given.own_images,
        false_positive_rate=given.false_positive_rate,
        **given.common,
        clip=given.clip,
    )
    print_mitigation(results, given.output)
    return results


def _calibrate(given: StageInput) -> dict[str, Any]:
    from memtrain.evaluation.stages.localize.roles import NEURONS, calibrate
    from memtrain.localization.settings import Settings

    statistics, threshold = calibrate(
        given.pipeline, given.prompts, output=given.output, settings=Settings(sites=given.sites)
    )
    print(
        f"Threshold of the similarity between seeds: {threshold.value:.3f}, the mean {threshold.mean:.3f} plus "
        f"{threshold.deviations:g} standard deviation ({threshold.std:.3f}) over {threshold.count} prompts.\n"
        f"Activation of {sum(map(len, statistics.mean.values()))} neurons in {len(statistics.mean)} layers. "
        f"Written to {given.output / NEURONS}, where --stages '[localize]' with the same --output finds both."
    )
    return {"threshold": asdict(threshold), "statistics": {"prompts": statistics.count}}


def _localize(given: StageInput) -> dict[str, Any]:
    from memtrain.evaluation.stages.localize.localize import localize
    from memtrain.evaluation.stages.localize.roles import search_part
    from memtrain.evaluation.stages.localize.section import print_localization
    from memtrain.localization.settings import Settings

    part = given.shard or Shard()
    if part != Shard():
        if given.contribution is not None:
            raise ConfigurationError(
                f"contribution={given.contribution} with part {part} of the prompts",
                expected="NeMo's search, which takes minutes per prompt; contributions take seconds",
                remedy="leave --shard or --contribution out",
            )
        found = search_part(
            given.pipeline,
            given.prompts,
            output=given.output,
            shard=(part.index, part.count),
            settings=Settings(sites=given.sites),
        )
        print(
            f"Part {part} of the prompts is searched: {len(found)} of {len(found.found)} have neurons. When all parts "
            f"are, the same command with --shard merge masks the neurons, samples and checks."
        )
        return {}
    results = localize(
        given.pipeline,
        given.prompts,
        own_images=given.own_images,
        false_positive_rate=given.false_positive_rate,
        settings=Settings(sites=given.sites),
        contribution=given.contribution,
        bake=given.bake,
        **given.common,
    )
    print_localization(results, given.output)
    return results


STAGES: dict[str, Callable[[StageInput], dict[str, Any]]] = {
    "detect": _detect,
    "calibrate": _calibrate,
    "localize": _localize,
    "mitigate": _mitigate,
}
"""Name on the command line -> stage; they run in this order, after `measure`."""
SHARED = frozenset({"detect", "localize"})
"""Stages whose prompts several processes can share."""


def chosen_stages(
    stages: Sequence[str] | str | None,
    *,
    model: str | None,
    prompts: str | None,
    detectors: bool,
    attention_plots: int = 0,
) -> list[str]:
    """The stages to run, in their order, checked before a model is loaded.

    Args:
        stages: what was asked for; None for `measure` of a run, `detect` for a model and prompts.
        model: a pipeline instead of a run.
        prompts: where prompts come from, if said.
        detectors: whether there are detectors.
        attention_plots: how many prompts' attention is to be drawn.

    Raises:
        ConfigurationError: if a name is unknown, or a stage lacks what it needs.
    """
    known = [MEASURE, *STAGES]
    if isinstance(stages, str):
        stages = [stages]
    names = list(stages) if stages is not None else ["detect" if model is not None else MEASURE]
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise ConfigurationError(
            f"Unknown stages: {', '.join(unknown)}" if unknown else "No stage to run",
            expected=f"some of {', '.join(known)}, for instance --stages '[{known[-1]}]'",
            remedy="correct --stages",
        )
    if model is not None and (MEASURE in names or prompts is None):
        raise ConfigurationError(
            f"model={model!r}, prompts={prompts!r}, stages {', '.join(names)}",
            expected="a model with prompts and without `measure`, which compares with a run's training images",
            remedy="name prompts and --stages '[detect]', or a run with --run",
        )
    if model is None and prompts is not None and set(names) == {MEASURE}:
        raise ConfigurationError(
            f"prompts={prompts!r}, which `measure` does not read: it samples the run's own captions",
            expected="prompts with a stage that reads them, or with --model",
            remedy=f"add --stages '[{known[1]}]', name a model, or leave the prompts out",
        )
    if "detect" in names and not detectors:
        raise ConfigurationError(
            "detectors=False leaves nothing to score prompts with",
            expected="detectors with the stage `detect`",
            remedy="leave `detectors` out",
        )
    if attention_plots and set(names) == {MEASURE}:
        raise ConfigurationError(
            f"attention_plots={attention_plots} with the stage `measure` alone, which draws none",
            expected=f"another stage, for instance --stages '[{known[1]}]'",
            remedy="add the stage, or leave attention_plots out",
        )
    return [name for name in known if name in names]


READ_BY = {
    "sites": ("calibrate", "localize"),
    "contribution": ("localize",),
    "bake": ("localize",),
    "mitigation": ("mitigate",),
    "clip": ("mitigate",),
    "false_positive_rate": (MEASURE, "mitigate", "localize"),
}
"""Options that only some stages read."""


def refuse_idle(stages: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse options that none of the stages reads.

    Args:
        stages: to run.
        options: value by name; None where nothing was said.

    Raises:
        ConfigurationError: naming the first of them.
    """
    for name, value in options.items():
        if value is not None and not set(READ_BY[name]) & set(stages):
            raise ConfigurationError(
                f"--{name} with the stages {', '.join(stages)}, of which none reads it",
                expected=f"one of {', '.join(READ_BY[name])}",
                remedy=f"add it to --stages, or leave --{name} out",
            )


def check_prompts(stages: Sequence[str], prompts: Sequence[PromptToScore]) -> None:
    """Refuse prompts that a later stage would refuse, before the first one works for hours.

    Raises:
        ConfigurationError: as that stage would.
    """
    if "localize" not in stages:
        return
    from memtrain.evaluation.stages.localize.roles import Roles

    Roles.of(prompts)
    if "calibrate" in stages and all(prompt.memorized is None for prompt in prompts):
        raise ConfigurationError(
            f"`calibrate` and `localize` of the same {len(prompts)} prompts, of which nothing is known",
            expected="some that are known not to be memorized, 0 in the column `memorized`, to compare with",
            remedy="run `calibrate` on other prompts first, in a command of its own with the same --output",
        )


def chosen_shard(shard: str | None, *, stages: Sequence[str]) -> Shard | None:
    """This process's part of the prompts.

    Args:
        shard: what was asked for; None for what the environment says.
        stages: to run.

    Returns:
        The part; None to merge.

    Raises:
        ConfigurationError: if it is none, or a stage cannot be shared.
    """
    alone = sorted(set(stages) - SHARED)
    if shard is None and len(alone) == len(stages):
        return Shard()
    part = read_shard(shard)
    if part != Shard() and alone:
        raise ConfigurationError(
            f"The stage {alone[0]} cannot be shared between processes, but this one is part {part or 'merge'}",
            expected=f"a command with no stages but {', '.join(sorted(SHARED))}",
            remedy="run the other stages in a command of their own, or say --shard 0/1",
        )
    return part
