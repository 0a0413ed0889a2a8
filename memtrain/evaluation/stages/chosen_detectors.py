"""Choice of the detectors that read a sampling: a list by class path, a suggested choice, or all that can."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from inspect import isabstract

from diffusers import DiffusionPipeline

from memtrain import detectors as package
from memtrain.detectors.base import Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling

TRIAL_STEPS = 2
SUGGESTED, ALL, NONE = "suggested", "all", "none"


def suggested_detectors(sampling: Sampling) -> list[Detector]:
    """Return cheap detectors, which together cost little more than one sampling."""
    return [GuidanceNorm(), MemAttn("E"), GuidanceNorm(steps=None), MemAttn("D"), *_between_seeds(sampling)]


def suggested_beside(sampling: Sampling) -> list[Detector]:
    """Return fewer detectors, for a sampling with another purpose."""
    return [GuidanceNorm(), MemAttn("E"), MemAttn("D"), *_between_seeds(sampling)]


def _between_seeds(sampling: Sampling) -> list[Detector]:
    return [NoiseSimilarity()] if len(sampling.seeds) > 1 else []


def every_detector() -> list[Detector]:
    """Return the suggested detectors, and one of each further class in :mod:`memtrain.detectors` with its defaults."""
    found = suggested_detectors(Sampling())
    for module in pkgutil.iter_modules(package.__path__):
        loaded = import_module(f"{package.__name__}.{module.name}")
        for kind in vars(loaded).values():
            here = isinstance(kind, type) and issubclass(kind, Detector) and kind.__module__ == loaded.__name__
            if here and not isabstract(kind) and not any(isinstance(one, kind) for one in found):
                found.append(kind())
    return found


def chosen_detectors(
    chosen: str | Sequence[Detector],
    pipeline: DiffusionPipeline,
    sampling: Sampling,
    *,
    suggested: Callable[[Sampling], list[Detector]] = suggested_detectors,
) -> tuple[list[Detector], dict[str, str]]:
    """Return the detectors to run, and for `all` the reasons against the other detectors, by name.

    Args:
        chosen: `suggested`, `all`, `none`, or a list of detectors.
        pipeline: the pipeline to sample.
        sampling: the settings of the sampling.
        suggested: the function that makes the suggested detectors.

    Raises:
        ConfigurationError: if no detector can read the pipeline.
    """
    if chosen == NONE:
        return [], {}
    if chosen == SUGGESTED:
        return suggested(sampling), {}
    if chosen != ALL:
        return [one for one in chosen if isinstance(one, Detector)], {}
    able: list[Detector] = []
    unable: dict[str, str] = {}
    for detector in every_detector():
        reason = reason_against(detector, pipeline, sampling)
        if reason is None:
            able.append(detector)
        else:
            unable[detector.name] = reason
    if not able:
        raise ConfigurationError(
            f"No detector can read {type(pipeline).__name__}: {'; '.join(unable.values())}",
            expected="a pipeline that at least one detector can read",
            remedy="use another pipeline, or leave out detectors with `--detectors none`",
        )
    return able, unable


def reason_against(detector: Detector, pipeline: DiffusionPipeline, sampling: Sampling) -> str | None:
    """Return why a detector cannot read this sampling, by a trial of one prompt in few steps; None if it can."""
    trial = replace(sampling.quiet, steps=min(sampling.steps, TRIAL_STEPS))
    try:
        readings = read_prompts_with(pipeline, ["a picture"], [detector], sampling=trial)
        detector.score(readings[detector.name])
    except MemtrainError as error:
        return str(error).splitlines()[0]
    return None


def refuse_none(chosen: str | Sequence[Detector]) -> None:
    """Refuse an empty list of detectors.

    Raises:
        ConfigurationError: if the list is empty.
    """
    if not isinstance(chosen, str) and not chosen:
        raise ConfigurationError(
            "detectors=[] names no detector to score prompts with",
            expected="suggested, all, or at least one detector by class path",
            remedy="leave out `--detectors`",
        )
