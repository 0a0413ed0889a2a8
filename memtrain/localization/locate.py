"""Find the value neurons that carry memorized images, prompt by prompt.

    from diffusers import StableDiffusionPipeline
    from memtrain.localization.locate import locate

    pipeline = StableDiffusionPipeline.from_pretrained("assets/tiny-sd")
    masks = locate(pipeline, ["a red apple", "a bicycle"])
    for prompt, mask in masks.items():
        with mask.on(pipeline.unet):
            pipeline(prompt).images[0].save("masked.png")
    print(masks.table.to_pylist())

Source: NeMo (Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in Diffusion Models",
NeurIPS 2024). A prompt counts as memorized if its noise predictions are more similar between seeds than those of other
prompts (:mod:`memtrain.localization.threshold`). Candidates are the value neurons with unusual activation for the
prompt (:mod:`memtrain.localization.selection`). A candidate is kept if switching it on makes the predictions similar
again (:mod:`memtrain.localization.refinement`).

Modes: the default makes the decisions of the paper at the first timestep, with a data range that does not depend on
other pairs, and a fast evaluation. `Settings.published()` finds the neurons of the published code with its evaluation.
`Settings.published(sequential=False)` finds the same neurons with the fast evaluation.

Cost: a few dozen to a few hundred denoiser images per memorized prompt, and one per seed for other prompts; measured in
benchmarks/RESULTS.md, "Finding neurons". Without `statistics`, the text encoder first runs on 1,000 prompts. Without
`threshold`, the denoiser first runs on 10 seeds of 100 prompts. Pass both for more than one list of prompts.

Cannot: erase anything. A masked neuron only keeps a prompt from triggering the image, and optimisation finds an
embedding that brings it back ("Finding DoRI", arXiv 2507.16880). Prompts that are not memorized also get neurons if
they are above the threshold, one in nine in the paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.files.progress import progress_bar
from memtrain.files.prompt_texts import prompt_list
from memtrain.functional.noise import SimilarityWindow
from memtrain.localization.calibration import keep_calibration, kept_calibration, require_same_model
from memtrain.localization.fast import FastSearch
from memtrain.localization.found import Found
from memtrain.localization.predictor import Predictor
from memtrain.localization.published import PublishedSearch
from memtrain.localization.results import (
    Localization,
    open_search,
    read_known,
    read_search,
    write_found,
)
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics, word_prompts
from memtrain.localization.threshold import Threshold, calibrate_threshold

STATISTICS_PROMPTS = 1000
"""Default number of other prompts for the activation statistics."""
THRESHOLD_PROMPTS = 100
"""Number of other prompts for the threshold, if :func:`locate` calibrates it."""


def locate(
    pipeline: StableDiffusionPipeline | Predictor,
    prompts: Sequence[str],
    *,
    statistics: ActivationStatistics | None = None,
    threshold: Threshold | float | None = None,
    other_prompts: Sequence[str] | None = None,
    settings: Settings | None = None,
    output: str | Path | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
    progress: bool = False,
) -> Localization:
    """Find the neuron masks of prompts that a model memorizes.

    Args:
        pipeline: the Stable Diffusion 1.x or 2.x pipeline, which is not changed, or a predictor of any other denoiser.
        prompts: the prompts to search; a repeated prompt is searched once.
        statistics: the activation statistics of other prompts; by default measured on `other_prompts`.
        threshold: the similarity between seeds above which a prompt counts as memorized; by default calibrated on
            `other_prompts`. :data:`memtrain.localization.threshold.PAPER` is the paper's value.
        other_prompts: prompts that the model does not memorize, best captions of the kind that it was trained on; by
            default random words.
        settings: the settings of the search.
        output: the folder for results, in which an interrupted search goes on.
        shard: the pair `(i, n)`, to search every n-th prompt from the i-th, for n processes with one `output`.
        batch_size: the number of images in one denoiser call, at least `settings.seeds`; by default the predictor's.
        progress: whether to show a progress bar over prompts.

    Returns:
        Masks by prompt, with the results for each prompt of the shard.

    Raises:
        ConfigurationError: if statistics or threshold do not fit the model or the settings, latents are too small to
            compare, or `output` holds another search or a calibration on other prompts.
        ProbeError: if the denoiser's forward pass did not reach a layer.
    """
    settings, folder = settings or Settings(), None if output is None else Path(output)
    predictor = pipeline if isinstance(pipeline, Predictor) else Predictor.of(pipeline, steps=settings.steps)
    window = SimilarityWindow.of(*predictor.shape[1:])
    sites = predictor.sites(settings.sites)
    mine = _shard(prompt_list(prompts), shard)
    other_prompts = None if other_prompts is None else prompt_list(other_prompts, name="other_prompts")
    if folder is not None and (statistics is None or threshold is None):
        kept = kept_calibration(folder, other_prompts)
        if kept is not None:
            require_same_model(kept[0], predictor, folder)
            statistics, threshold = statistics or kept[0], threshold if threshold is not None else kept[1]
    others: list[str] | None = None
    if statistics is None or threshold is None:
        others = list(other_prompts) if other_prompts is not None else _words(pipeline)
        statistics, threshold = _measured(
            predictor,
            others,
            statistics=statistics,
            threshold=threshold,
            settings=settings,
            batch_size=batch_size,
            source="given" if other_prompts is not None else "random words",
        )
    statistics.check(predictor.widths(sites))
    if isinstance(threshold, Threshold):
        threshold.check(settings, window)
    search = _described(predictor, sites, settings=settings, statistics=statistics, threshold=threshold)
    if folder is not None:
        open_search(folder, search)
        if others is not None and isinstance(threshold, Threshold):
            keep_calibration(folder, others, statistics, threshold)
    with predictor.evaluating():
        finder: PublishedSearch | FastSearch
        if settings.sequential:
            finder = PublishedSearch(predictor, sites, settings, statistics=statistics, threshold=search["threshold"])
        else:
            finder = FastSearch(
                predictor, sites, settings, statistics=statistics, threshold=search["threshold"], batch_size=batch_size
            )
        found = _searched(finder, mine, folder, progress=progress)
    if folder is not None:
        Localization.load(folder).save(folder)
    return Localization(tuple(found), tuple(sites), search)


def calibrate(
    pipeline: StableDiffusionPipeline | Predictor,
    other_prompts: Sequence[str],
    *,
    output: str | Path,
    settings: Settings | None = None,
    batch_size: int | None = None,
    scores: Tensor | None = None,
) -> tuple[ActivationStatistics, Threshold]:
    """Measure the statistics and threshold of a search, and keep them in a folder, where :func:`locate` finds them.

    Args:
        pipeline: pipeline as for :func:`locate`.
        other_prompts: prompts that the model does not memorize, at least two; all of them count for both results.
        output: folder of the later searches.
        settings: settings of these searches.
        batch_size: images in one denoiser call; the predictor's by default.
        scores: scores of the prompts from :func:`memtrain.localization.threshold.pairwise_scores`; computed if None.

    Returns:
        Activation statistics and threshold.

    Raises:
        ConfigurationError: for fewer than two prompts, latents too small to compare, or a folder with results of a
            search with another calibration.
    """
    settings, folder, others = settings or Settings(), Path(output), prompt_list(other_prompts, name="other_prompts")
    predictor = pipeline if isinstance(pipeline, Predictor) else Predictor.of(pipeline, steps=settings.steps)
    if read_search(folder) is not None:
        kept = kept_calibration(folder, others)
        if kept is None:
            raise ConfigurationError(
                f"{folder} holds a search with another calibration",
                expected="a folder without results",
                remedy="leave out the calibration to go on with that search, or name another folder",
            )
        require_same_model(kept[0], predictor, folder)
        kept[0].check(predictor.widths(predictor.sites(settings.sites)))
        kept[1].check(settings, SimilarityWindow.of(*predictor.shape[1:]))
        return kept
    threshold = calibrate_threshold(
        predictor, others, settings=settings, batch_size=batch_size, source="given", scores=scores
    )
    statistics = ActivationStatistics.measure(predictor, others, sites=settings.sites, source="given")
    keep_calibration(folder, others, statistics, threshold)
    return statistics, threshold


def _measured(
    predictor: Predictor,
    others: list[str],
    *,
    statistics: ActivationStatistics | None,
    threshold: Threshold | float | None,
    settings: Settings,
    batch_size: int | None,
    source: str,
) -> tuple[ActivationStatistics, Threshold | float]:
    """Return statistics and threshold; missing ones are measured on other prompts."""
    if statistics is None:
        statistics = ActivationStatistics.measure(predictor, others, sites=settings.sites, source=source)
    if threshold is None:
        threshold = calibrate_threshold(
            predictor, others[:THRESHOLD_PROMPTS], settings=settings, batch_size=batch_size, source=source
        )
    return statistics, threshold


def _described(
    predictor: Predictor,
    sites: dict[str, nn.Module],
    *,
    settings: Settings,
    statistics: ActivationStatistics,
    threshold: Threshold | float,
) -> dict[str, Any]:
    """Return the values that decide on the neurons, and that identify a search."""
    return {
        "settings": json.loads(settings.json()),
        "threshold": threshold.value if isinstance(threshold, Threshold) else float(threshold),
        "threshold_from": threshold.source if isinstance(threshold, Threshold) else "given",
        "window": asdict(SimilarityWindow.of(*predictor.shape[1:])),
        "model": predictor.name,
        "fingerprint": predictor.fingerprint(sites),
        "statistics_from": f"{statistics.count or 'an unstated number of'} prompts, "
        f"{statistics.source or 'of unstated origin'}",
        "statistics_fingerprint": statistics.fingerprint,
        "sites": list(sites),
    }


def _searched(
    finder: PublishedSearch | FastSearch, prompts: Sequence[str], folder: Path | None, *, progress: bool
) -> list[Found]:
    """Search each prompt, and write its result to a folder; prompts with results are not searched again."""
    known = {} if folder is None else read_known(folder, prompts)
    for prompt in progress_bar(prompts, desc="finding neurons", unit="prompt", disable=not progress):
        if prompt not in known:
            known[prompt] = finder.locate(prompt)
            if folder is not None:
                write_found(folder, known[prompt])
    return [known[prompt] for prompt in prompts]


def _shard(prompts: Sequence[str], shard: tuple[int, int]) -> list[str]:
    index, count = shard
    if not prompts or not 0 <= index < count:
        raise ConfigurationError(
            f"The search needs prompts and a valid shard, found prompts {prompts!r:.80} and shard {index} of {count}",
            expected="a list of prompts, and a shard (i, n) with i from 0 to n - 1",
            remedy="change prompts or shard",
        )
    return list(dict.fromkeys(prompts))[index::count]


def _words(pipeline: StableDiffusionPipeline | Predictor) -> list[str]:
    if isinstance(pipeline, Predictor):
        raise ConfigurationError(
            "A predictor has no tokenizer to make other prompts with",
            expected="other_prompts, or both statistics and threshold",
            remedy="pass other_prompts with captions that the model does not memorize",
        )
    return word_prompts(pipeline.tokenizer, STATISTICS_PROMPTS)
