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
NeurIPS 2024). A prompt counts as memorized if its noise predictions are more alike between seeds than those of other
prompts (:mod:`memtrain.localization.threshold`). Candidates are the value neurons that act unusually for it
(:mod:`memtrain.localization.selection`), and those are kept without which the predictions become alike again
(:mod:`memtrain.localization.refinement`).

Modes: by default the decisions of the paper at the first timestep, with a data range that does not depend on what else
is compared, evaluated fast. `Settings.published()` finds the neurons of the published code, evaluated as there, and
`Settings.published(sequential=False)` the same neurons, evaluated fast.

Cost: a few dozen to a few hundred denoiser images per memorized prompt, one per seed for others; measured in
benchmarks/RESULTS.md, "Finding neurons". Without `statistics`, the text encoder runs on 1,000 prompts first, without
`threshold` the denoiser on 10 seeds of 100; pass both when there is more than one list of prompts.

Cannot: erase anything. A masked neuron keeps a prompt from triggering the image; an embedding that brings it back is
found by optimisation ("Finding DoRI", arXiv 2507.16880). Prompts that are not memorized get neurons too where they lie
above the threshold, one in nine in the paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from tqdm.auto import tqdm

from memtrain.errors import ConfigurationError
from memtrain.functional.noise import SimilarityWindow
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
from memtrain.records import written_whole

STATISTICS_PROMPTS = 1000
"""Other prompts whose activations are compared with, where none are given."""
THRESHOLD_PROMPTS = 100
"""Other prompts that the threshold is calibrated on, where :func:`locate` does that by itself."""
STATISTICS, THRESHOLD, CALIBRATED_ON = "statistics.safetensors", "threshold.json", "calibrated_on.json"
"""Files of a search's folder; the last one lists the prompts that the first two were measured on."""


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
    """The neuron masks of prompts that a model memorizes.

    Args:
        pipeline: a Stable Diffusion 1.x or 2.x pipeline, left as it was; or a predictor made of any other denoiser.
        prompts: those to search; repeated ones are searched once.
        statistics: activations for other prompts; measured on `other_prompts` by default.
        threshold: similarity between seeds above which a prompt counts as memorized; calibrated on `other_prompts` by
            default.
        other_prompts: prompts that the model does not memorize, captions of the kind it was trained on at best;
            random words by default.
        settings: of the search.
        output: folder for results; a search that was interrupted goes on there.
        shard: `(i, n)`: search every n-th prompt from the i-th on, i from 0, for n processes with one `output`.
        batch_size: images in one denoiser call, at least `settings.seeds`; the predictor's by default.
        progress: show a progress bar over prompts.

    Returns:
        Masks by prompt, and what was found for each prompt of the shard.

    Raises:
        ConfigurationError: if statistics or threshold do not fit the model or the settings, latents are too small to
            compare, or `output` holds another search or a calibration on other prompts.
        ProbeError: if a layer was not reached by the denoiser's forward pass.
    """
    settings = settings or Settings()
    predictor = pipeline if isinstance(pipeline, Predictor) else Predictor.of(pipeline, steps=settings.steps)
    window = SimilarityWindow.of(*predictor.shape[1:])
    sites = predictor.sites(settings.sites)
    mine = _shard(prompts, shard)
    folder = None if output is None else Path(output)
    if folder is not None and (statistics is None or threshold is None):
        kept = kept_calibration(folder, other_prompts)
        if kept is not None:
            require_same_model(kept[0], predictor, folder)
            statistics, threshold = statistics or kept[0], threshold if threshold is not None else kept[1]
    others: list[str] | None = None
    if statistics is None or threshold is None:
        source = "given" if other_prompts is not None else "random words"
        others = list(other_prompts) if other_prompts is not None else _words(pipeline)
        if statistics is None:
            statistics = ActivationStatistics.measure(predictor, others, sites=settings.sites, source=source)
        if threshold is None:
            threshold = calibrate_threshold(
                predictor, others[:THRESHOLD_PROMPTS], settings=settings, batch_size=batch_size, source=source
            )
    statistics.check(predictor.widths(sites))
    if isinstance(threshold, Threshold):
        threshold.check(settings, window)
    value = threshold.value if isinstance(threshold, Threshold) else float(threshold)
    search: dict[str, Any] = {
        "settings": json.loads(settings.json()),
        "threshold": value,
        "threshold_from": threshold.source if isinstance(threshold, Threshold) else "given",
        "window": asdict(window),
        "model": predictor.name,
        "fingerprint": predictor.fingerprint(sites),
        "statistics_from": f"{statistics.count} prompts, {statistics.source or 'of unstated origin'}",
        "statistics_fingerprint": statistics.fingerprint,
        "sites": list(sites),
    }
    known: dict[str, Found] = {}
    if folder is not None:
        open_search(folder, search)
        if others is not None and isinstance(threshold, Threshold):
            _keep_calibration(folder, others, statistics, threshold)
        known = read_known(folder, mine)
    with predictor.evaluating():
        finder: PublishedSearch | FastSearch
        if settings.sequential:
            finder = PublishedSearch(predictor, sites, settings, statistics=statistics, threshold=value)
        else:
            finder = FastSearch(
                predictor, sites, settings, statistics=statistics, threshold=value, batch_size=batch_size
            )
        for prompt in tqdm(mine, desc="finding neurons", unit="prompt", disable=not progress):
            if prompt not in known:
                known[prompt] = finder.locate(prompt)
                if folder is not None:
                    write_found(folder, known[prompt])
    if folder is not None:
        Localization.load(folder).save(folder)
    return Localization(tuple(known[prompt] for prompt in mine), tuple(sites), search)


def calibrate(
    pipeline: StableDiffusionPipeline | Predictor,
    other_prompts: Sequence[str],
    *,
    output: str | Path,
    settings: Settings | None = None,
    batch_size: int | None = None,
) -> tuple[ActivationStatistics, Threshold]:
    """Measure what a search compares with, and keep it in a folder, where :func:`locate` finds it.

    Args:
        pipeline: as for :func:`locate`.
        other_prompts: at least two that the model does not memorize; all of them count, for both.
        output: folder, the same as that of the searches to come.
        settings: of those searches.
        batch_size: images in one denoiser call; the predictor's by default.

    Returns:
        Activation statistics and threshold.

    Raises:
        ConfigurationError: for fewer than two prompts, latents too small to compare, or a folder with results of a
            search that rests on another calibration.
    """
    settings, folder, others = settings or Settings(), Path(output), list(other_prompts)
    predictor = pipeline if isinstance(pipeline, Predictor) else Predictor.of(pipeline, steps=settings.steps)
    if read_search(folder) is not None:
        kept = kept_calibration(folder, others)
        if kept is None:
            raise ConfigurationError(
                f"{folder} holds a search with a calibration that was given to it",
                expected="a folder without results",
                remedy="leave the calibration out to go on with that search, or name another folder",
            )
        require_same_model(kept[0], predictor, folder)
        kept[0].check(predictor.widths(predictor.sites(settings.sites)))
        kept[1].check(settings, SimilarityWindow.of(*predictor.shape[1:]))
        return kept
    threshold = calibrate_threshold(predictor, others, settings=settings, batch_size=batch_size, source="given")
    statistics = ActivationStatistics.measure(predictor, others, sites=settings.sites, source="given")
    _keep_calibration(folder, others, statistics, threshold)
    return statistics, threshold


def calibrated_on(folder: Path) -> list[str] | None:
    """The prompts that the calibration in a folder rests on; None if there is none."""
    path = folder / CALIBRATED_ON
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def kept_calibration(
    folder: Path, other_prompts: Sequence[str] | None = None
) -> tuple[ActivationStatistics, Threshold] | None:
    """What an earlier process measured in this folder; None if nothing.

    Args:
        folder: of the search.
        other_prompts: that it has to rest on; None for any.

    Raises:
        ConfigurationError: if it rests on others.
    """
    known = calibrated_on(folder)
    if known is None:
        return None
    if other_prompts is not None and list(other_prompts) != known:
        raise ConfigurationError(
            f"{folder} holds a calibration on {len(known)} prompts, which are not the {len(other_prompts)} given now",
            expected="the same prompts, or none, to use what is there",
            remedy="name another folder, or leave the other prompts out",
        )
    return ActivationStatistics.load(folder / STATISTICS), Threshold.load(folder / THRESHOLD)


def _keep_calibration(
    folder: Path, others: Sequence[str], statistics: ActivationStatistics, threshold: Threshold
) -> None:
    statistics.save(folder / STATISTICS)
    threshold.save(folder / THRESHOLD)
    # Last, because it says that the others are there.
    with written_whole(folder / CALIBRATED_ON) as unfinished:
        unfinished.write_text(json.dumps(list(others), ensure_ascii=False) + "\n", encoding="utf-8")


def _shard(prompts: Sequence[str], shard: tuple[int, int]) -> list[str]:
    index, count = shard
    if not prompts or isinstance(prompts, str) or not 0 <= index < count:
        raise ConfigurationError(
            f"Nothing sensible to search: {prompts!r:.80}, shard {index} of {count}",
            expected="a list of prompts, and a shard (i, n) with i from 0 to n - 1",
            remedy="change the arguments",
        )
    return list(dict.fromkeys(prompts))[index::count]


def require_same_model(statistics: ActivationStatistics, predictor: Predictor, folder: Path) -> None:
    """That what lies in the folder was measured on these value layers.

    Raises:
        ConfigurationError: if not.
    """
    sites = {name: site for name, site in predictor.sites("*").items() if name in statistics.mean}
    if len(sites) < len(statistics.mean) or predictor.fingerprint(sites) != statistics.fingerprint:
        raise ConfigurationError(
            f"The calibration in {folder} was measured on another model ({statistics.model or 'unnamed'})",
            expected="the model that is searched, with the same value layers",
            remedy="name another output folder, or calibrate again",
        )


def _words(pipeline: StableDiffusionPipeline | Predictor) -> list[str]:
    if isinstance(pipeline, Predictor):
        raise ConfigurationError(
            "A predictor has no tokenizer to make other prompts with",
            expected="other_prompts, or both statistics and threshold",
            remedy="give captions that the model does not memorize",
        )
    return word_prompts(pipeline.tokenizer, STATISTICS_PROMPTS)
