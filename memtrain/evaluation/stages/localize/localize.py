"""The stage `localize`: find the neurons of memorized prompts, switch them off, and check whether the image is gone.

What: the prompts that are known not to be memorized are the controls. Every other one of them gives activation
statistics and threshold, unless those are given; neurons are searched for the remaining controls (false alarms) and for
all other prompts. Then images are sampled as the model is, under each prompt's mask, under all masks together (the form
that is baked into weights), and each of these again with an embedding that an adversarial search found for the prompt's
own image (:mod:`memtrain.localization.retrigger`). The same search for images of controls, which the model never saw,
says how much of that the search does alone.
Source: NeMo (Hintersdorf et al., NeurIPS 2024) for the masks; "Finding DoRI" (arXiv 2507.16880) for the check.
Measures: replication is the distance to the own image over the mean distance to the other prompts' images
(:mod:`memtrain.evaluation.measures.replication`), with its threshold from the controls' unmasked images; diversity is
the distance between seeds; fidelity is retrieval of the prompt by the unmasked model
(:mod:`memtrain.evaluation.measures.fidelity`); held-out loss is that of the controls' images. NeMo's own metrics need
weights: :mod:`memtrain.evaluation.measures.nemo_metrics`.
Cost: sampling every prompt two to six times, and the search: one embedding costs about as much as 40 images.

Written to the output folder: `localization.json`; `localization.parquet`, one row per prompt and condition;
`masks.safetensors`, keyed by prompt; `localization.png`, own and generated images; `neurons/`, from which an
interrupted search goes on. Embeddings are not kept.
Cannot: show that an image is gone. Where the search fails, a better one may not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.measures.replication import reproduction_threshold
from memtrain.evaluation.sampling.embedding_samples import sample_embeddings, text_embeddings
from memtrain.evaluation.stages.localize.conditions import (
    MASKED,
    SEARCHED,
    UNION,
    UNMASKED,
    Conditions,
    change_of_loss,
    neuron_figures,
    share,
    verdict,
)
from memtrain.evaluation.stages.localize.roles import NEURONS, Roles
from memtrain.evaluation.stages.localize.section import contact_sheet
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.provenance import provenance
from memtrain.localization.contribution import EVERY_SITE, locate_contributions
from memtrain.localization.locate import calibrated_on, kept_calibration, locate, require_same_model
from memtrain.localization.masked_pipeline import require_free, save_masked_pipeline
from memtrain.localization.predictor import Predictor
from memtrain.localization.results import Localization, save_masks, union
from memtrain.localization.retrigger import retrigger
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import Threshold
from memtrain.models.neuron_mask import NeuronMask
from memtrain.records import write_json, write_parquet

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
"""Of `localization.json` and `localization.parquet`."""
CONTROLS = 20
"""Controls whose images are searched for at most: they set how often the search succeeds without a memory."""


def localize(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[PromptToScore],
    *,
    output: str | Path,
    own_images: Tensor | None = None,
    statistics: ActivationStatistics | None = None,
    threshold: Threshold | float | None = None,
    settings: Settings | None = None,
    contribution: float | None = None,
    probe: bool = True,
    probe_steps: int = 50,
    heldout: tuple[Tensor, Sequence[str]] | None = None,
    false_positive_rate: float | None = None,
    bake: str | Path | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 8,
    model: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Locate, mask, check, and write the results.

    Args:
        pipeline: a Stable Diffusion 1.x or 2.x pipeline, left as it was.
        prompts: P different prompts. Those known not to be memorized are controls.
        output: folder to write to.
        own_images: `(P, 3, H, W)` uint8, the image that belongs to each prompt. Without them nothing is said about
            replication, and the search for embeddings is left out.
        statistics: activations for other prompts; default measured on half of the controls, or on random words.
        threshold: similarity between seeds above which a prompt counts as memorized; default as `statistics`.
        settings: of the search for neurons.
        contribution: take this share of all neurons by :mod:`memtrain.localization.contribution` instead of NeMo's
            search, which then has no `statistics`; needs controls.
        probe: search for embeddings that bring masked images back.
        probe_steps: of that search.
        heldout: images `(n, 3, H, W)` uint8 that were never trained on, and their captions; default the controls'.
        false_positive_rate: probability that a prompt whose image was never trained on counts as reproduced; default
            0.01, or with fewer than 99 controls the lowest that they can promise.
        bake: folder to save a pipeline to whose weights have the masks of all prompts in them, those of controls not.
        seeds: K seeds; each prompt is sampled with every one.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        model: where the pipeline comes from; stored as it is.
        progress: show progress bars.

    Returns:
        The content of `localization.json`.

    Raises:
        ConfigurationError: if prompts are repeated, none is left to search, settings contradict each other, or the
            folder to bake into holds a pipeline.
        DataError: if prompts and images do not belong together.
        CalibrationError: if there are too few controls for the rate.
    """
    texts = [prompt.text for prompt in prompts]
    roles = Roles.of(prompts)
    if own_images is not None:
        _check_images(own_images, len(prompts))
    if false_positive_rate is not None and own_images is not None:
        reproduction_threshold(torch.zeros(len(roles.controls)), false_positive_rate)
    folder = Path(output)
    if bake is not None:
        require_free(Path(bake))
    kept = calibrated_on(folder / NEURONS)
    if statistics is not None and threshold is not None:
        roles = roles.calibrated_on(prompts, ())
    elif kept is not None:
        roles = roles.calibrated_on(prompts, set(kept))
    asked, tested, controls = roles.asked, roles.tested, roles.controls
    searched, others = [texts[row] for row in roles.searched], [texts[row] for row in roles.calibrating]
    if contribution is not None:
        calibration = kept_calibration(folder / NEURONS)
        settings = settings or Settings()
        if calibration is not None:
            require_same_model(calibration[0], Predictor.of(pipeline, steps=settings.steps), folder / NEURONS)
            threshold = calibration[1] if threshold is None else threshold
        located = locate_contributions(
            pipeline,
            searched,
            other_prompts=kept or others,
            share=contribution,
            threshold=threshold,
            sites=settings.sites or EVERY_SITE,
            settings=settings,
        )
    else:
        located = locate(
            pipeline,
            searched,
            statistics=statistics,
            threshold=threshold,
            other_prompts=None if kept is not None else others or None,
            settings=settings,
            output=folder / NEURONS,
            progress=progress,
        )
    # Controls that were taken for memorized are no reason to switch neurons off for good.
    whole = union([mask for row in asked if (mask := located.get(texts[row])) is not None])
    sampling: dict[str, Any] = {
        "seeds": seeds,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "batch_size": batch_size,
        "size": None if own_images is None else (int(own_images.shape[-2]), int(own_images.shape[-1])),
        "progress": progress,
    }
    changed = roles.searched
    conditions = Conditions(pipeline, prompts, own_images, changed, false_positive_rate)
    plain = sample_embeddings(pipeline, text_embeddings(pipeline, texts), **sampling)
    conditions.add(UNMASKED, range(len(prompts)), images=plain)
    for name, masks in _masks(located, [texts[row] for row in changed], whole).items():
        if name != UNMASKED and any(masks):
            embeddings = text_embeddings(pipeline, [texts[row] for row in changed])
            conditions.add(name, changed, images=sample_embeddings(pipeline, embeddings, masks=masks, **sampling))
    if probe and own_images is not None:
        # The search for the controls' images is the measure of what it can do without a memory.
        rows = [*asked, *tested[:CONTROLS]]
        for name, masks in _masks(located, [texts[row] for row in rows], whole).items():
            of_interest = rows if name == UNMASKED else asked
            masks = masks[: len(of_interest)]
            if name != UNMASKED and not any(masks):
                continue
            found = retrigger(
                pipeline, [texts[row] for row in of_interest], own_images[of_interest], masks=masks, steps=probe_steps
            )
            images = sample_embeddings(pipeline, found.embeddings, masks=masks, **sampling)
            conditions.add(name + SEARCHED, of_interest, images=images, losses=found.losses)
    loss = None
    if heldout is None and own_images is not None and controls:
        heldout = own_images[controls], [texts[row] for row in controls]
    if heldout is not None and whole is not None:
        loss = _loss(pipeline, heldout, mask=whole)
    by_prompt = {found.prompt: found for found in located.found}
    figures = conditions.summarize()
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "model": model,
        "sampling": {"seeds": list(seeds), "steps": steps, "guidance_scale": guidance_scale},
        "search": located.search,
        "prompts": {"asked": len(asked), "controls": len(controls), "controls_tested": len(tested)},
        "located": {
            "asked": share([by_prompt[texts[row]].neurons > 0 for row in asked]),
            "false_alarms": share([by_prompt[texts[row]].neurons > 0 for row in tested]),
        },
        "neurons": neuron_figures([by_prompt[texts[row]] for row in asked], located.sites, whole),
        **figures,
        "heldout_loss": loss,
        "probe": {"steps": probe_steps, "learning_rate": 0.1, "draws": 8} if probe and own_images is not None else None,
    }
    results["verdict"] = verdict(results)
    rows_of_table = conditions.rows()
    for row in rows_of_table:
        neurons = by_prompt.get(row["prompt"])
        row["neurons"] = None if neurons is None else neurons.neurons
    folder.mkdir(parents=True, exist_ok=True)
    save_masks(located, folder / "masks.safetensors")
    write_parquet(pa.Table.from_pylist(rows_of_table), folder / "localization.parquet")
    contact_sheet(folder / "localization.png", conditions, rows=asked, own_images=own_images)
    write_json(results, folder / "localization.json")
    if bake is not None and whole is not None:
        save_masked_pipeline(pipeline, whole, Path(bake))
    elif bake is not None:
        log.warning("Nothing was baked into %s: no prompt has neurons to switch off", bake)
    return results


def _masks(located: Localization, texts: Sequence[str], whole: NeuronMask | None) -> dict[str, list[NeuronMask | None]]:
    """Per condition the mask of each prompt."""
    own = [located.get(text) for text in texts]
    return {UNMASKED: [None] * len(texts), MASKED: own, UNION: [whole] * len(texts)}


def _loss(
    pipeline: StableDiffusionPipeline, heldout: tuple[Tensor, Sequence[str]], *, mask: NeuronMask
) -> dict[str, Any]:
    images, captions = heldout
    without = heldout_loss(pipeline, images, captions=list(captions))
    with mask.on(pipeline.unet):
        masked = heldout_loss(pipeline, images, captions=list(captions))
    return change_of_loss(without, masked)


def _check_images(own_images: Tensor, count: int) -> None:
    """Refuse what would fail after minutes."""
    if len(own_images) != count or own_images.dtype != torch.uint8:
        raise DataError(
            f"{count} prompts and own images {tuple(own_images.shape)} of {own_images.dtype}",
            expected="one image (3, H, W) of uint8 per prompt",
            remedy="pass both in the same order",
        )
