"""The stage `localize`: find the neurons of memorized prompts, switch them off, and check whether the image is gone.

Method: the prompts that are known not to be memorized are the controls. Every other control gives activation
statistics and threshold, unless those are given. Neurons are searched for the remaining controls (which measures false
positives) and for all other prompts. Then images are sampled without a mask, under each prompt's mask, and under all
masks together (the form that is baked into weights). Each of these is sampled again with an embedding that an
adversarial search found for the prompt's own image (:mod:`memtrain.localization.retrigger`). The same search for images
of controls, which the model never saw, shows how much the search reaches without memorization.
Source: NeMo (Hintersdorf et al., NeurIPS 2024) for the masks; "Finding DoRI" (arXiv 2507.16880) for the check.
Measures: replication is the distance to the own image over the mean distance to the other prompts' images
(:mod:`memtrain.evaluation.measures.replication`), with its threshold from the controls' unmasked images. Diversity is
the distance between seeds. Fidelity is retrieval of the prompt by the unmasked model
(:mod:`memtrain.evaluation.measures.fidelity`). The held-out loss is the loss of the controls' images. NeMo's own
metrics need weights: :mod:`memtrain.evaluation.measures.nemo_metrics`.
Cost: sampling every prompt two to six times, and the search: one embedding costs about as much as 40 images.

Written to the output folder: `localization.json`, `localization.parquet` (one row per prompt and condition),
`masks.safetensors` (keyed by prompt), `localization.png` (own and generated images) and `neurons/`, from which an
interrupted search goes on. The tables by line of :mod:`memtrain.evaluation.stages.localize.tables` are written, too,
and on request every image under `images/`. Embeddings are not kept.
Cannot: show that an image is gone. Where the search fails, a better one may succeed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.measures.replication import reproduction_threshold
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.localize.compared_masks import compared_masks
from memtrain.evaluation.stages.localize.conditions import (
    MASKED,
    SEARCHED,
    UNION,
    UNMASKED,
    Conditions,
    change_of_loss,
    neuron_figures,
    verdict,
)
from memtrain.evaluation.stages.localize.lines import check_images, each_once
from memtrain.evaluation.stages.localize.masked_samples import MaskedSamples, identity_of_masked, judged
from memtrain.evaluation.stages.localize.networks import masked_networks
from memtrain.evaluation.stages.localize.pictures import write_pictures
from memtrain.evaluation.stages.localize.search import Search, find_neurons
from memtrain.evaluation.stages.localize.sheet import write_sheet
from memtrain.evaluation.stages.localize.tables import write_tables
from memtrain.evaluation.stages.parts import PARTS, Parts
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.roles import Roles, distinct
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.functional.ranking import share
from memtrain.localization.masked_pipeline import require_free, save_masked_pipeline
from memtrain.localization.predictor import Predictor
from memtrain.localization.results import Localization, save_masks, union
from memtrain.models.neuron_mask import NeuronMask
from memtrain.records import write_parquet

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
"""Version of the format of `localization.json` and `localization.parquet`."""
CONTROLS = 20
"""Highest number of controls whose images are searched for, as the success rate without memorization."""
PROBE_STEPS = 50
"""Suggested steps of the search for embeddings."""
BASELINE_K = 10
"""Suggested number of neurons or sets of a baseline."""


def localize(
    given: StageInput,
    *,
    search: Search | None = None,
    probe_steps: int = PROBE_STEPS,
    heldout: tuple[Tensor, Sequence[str]] | None = None,
    false_positive_rate: float | None = None,
    weights: Weights | None = None,
    bake: str | Path | None = None,
    baselines: Sequence[str] = (),
    baseline_k: int = BASELINE_K,
    save_images: bool = False,
    shard: Shard = WHOLE,
) -> dict[str, Any]:
    """Locate, mask, check, and write the results.

    Args:
        given: Stable Diffusion 1.x or 2.x pipeline (left as it was), P prompts, the image of each prompt, settings of
            the sampling, and the output folder. Prompts known not to be memorized are controls. Repeated prompts are
            searched, sampled and counted once. Without images, replication is not measured and the search for
            embeddings is left out.
        search: settings of the search for neurons.
        probe_steps: steps of the search for embeddings that bring masked images back; 0 to leave it out.
        heldout: images `(n, 3, H, W)` uint8 that were never trained on, and their captions; default the controls'.
        false_positive_rate: probability that a prompt whose image was never trained on counts as reproduced; default
            0.01, or with fewer than 99 controls the lowest that they can promise.
        weights: weights of networks for additional measures.
        bake: folder for a pipeline whose weights contain the masks of all prompts except the controls.
        baselines: names of further masks (:mod:`memtrain.evaluation.stages.localize.compared_masks`).
        baseline_k: number of neurons or sets, for the baselines that take a number.
        save_images: whether image files are written (:mod:`memtrain.evaluation.stages.localize.pictures`).
        shard: part of the work after the search, where several processes share an output folder.

    Returns:
        The content of `localization.json`.

    Raises:
        ConfigurationError: if no prompt is left to search, a repeated prompt has both labels, settings contradict each
            other, or the folder `bake` holds a pipeline.
        DataError: if prompts and images do not belong together.
        CalibrationError: if there are too few controls for the rate.
        UnfinishedParts: if other processes have not finished their parts.
    """
    if given.own_images is not None:
        check_images(given.own_images, len(given.prompts))
    lines, first = given.prompts, distinct(given.prompts)
    given = each_once(given, first)
    prompts, own_images = given.prompts, given.own_images
    roles = Roles.of(prompts)
    if false_positive_rate is not None and own_images is not None:
        reproduction_threshold(torch.zeros(len(roles.controls)), false_positive_rate)
    if bake is not None:
        require_free(Path(bake))
    case = _Case.of(given, *find_neurons(given, search or Search()))
    roles, located = case.roles, case.located
    conditions = Conditions(given.pipeline, prompts, own_images, roles.searched, false_positive_rate)
    parts = _sampled(case, conditions, baselines, k=baseline_k, steps=probe_steps, shard=shard)
    loss = _heldout_loss(case, heldout)
    results = {
        **_figures(case, conditions, loss),
        "probe": {"steps": probe_steps, "learning_rate": 0.1, "draws": 8}
        if probe_steps and own_images is not None
        else None,
    }
    if weights is not None and weights.any:
        results["networks"] = masked_networks(case.given, conditions, roles, weights=weights)
    results["verdict"] = verdict(results)
    results["prompts"]["lines"] = len(lines)
    if baselines:
        results["baselines"] = {"names": list(baselines), "k": baseline_k}
    written = _write(case, conditions, results)
    write_tables(given.output, located, lines, prompts=prompts, roles=roles)
    if save_images:
        write_pictures(given.output, conditions, lines, first=first, seeds=given.sampling.seeds)
    if bake is not None and case.whole is not None:
        save_masked_pipeline(given.pipeline, case.whole, Path(bake))
    elif bake is not None:
        log.warning("Nothing was baked into %s: no prompt has neurons to switch off", bake)
    return parts.closed(written)


def _sampled(
    case: _Case, conditions: Conditions, baselines: Sequence[str], *, k: int, steps: int, shard: Shard
) -> Parts:
    """Sample this process's share, measure all conditions once everything is there, and return the kept parts."""
    plan = _plan(case, baselines, k=k, steps=steps)
    asked = {"baselines": list(baselines), "k": k, "steps": steps}
    identity = identity_of_masked(case.given, plan.sampling, case.located, asked)
    parts = Parts(case.given.output / PARTS, identity, shard=shard, progress=case.given.sampling.progress)
    parts.share(plan.units, what="batches of images")
    for one in plan.read(parts):
        conditions.add(one.name, one.rows, images=one.images, losses=one.losses, judged=judged(one, conditions, parts))
    return parts


@dataclass(frozen=True)
class _Case:
    """Prompts and results once neurons are found.

    Attributes:
        given: pipeline, prompts and settings.
        roles: roles of the prompts.
        located: neurons found for them.
        whole: neurons of all prompts asked about in one mask; None if there are none.
    """

    given: StageInput
    roles: Roles
    located: Localization
    whole: NeuronMask | None

    @staticmethod
    def of(given: StageInput, roles: Roles, located: Localization) -> _Case:
        # Controls that were classed as memorized are no reason to switch neurons off in the saved weights.
        masks = [located.get(given.prompts[row].text) for row in roles.asked]
        return _Case(given, roles, located, union([mask for mask in masks if mask is not None]))

    def texts(self, rows: Sequence[int]) -> list[str]:
        return [self.given.prompts[row].text for row in rows]

    def masks(self, rows: Sequence[int]) -> dict[str, list[NeuronMask | None]]:
        """Return per condition the mask of each prompt."""
        own = [self.located.get(text) for text in self.texts(rows)]
        return {UNMASKED: [None] * len(rows), MASKED: own, UNION: [self.whole] * len(rows)}


def _heldout_loss(case: _Case, heldout: tuple[Tensor, Sequence[str]] | None) -> dict[str, float] | None:
    """Return the losses of the held-out images (default: the controls'); None without images or without neurons."""
    own, roles = case.given.own_images, case.roles
    if heldout is None and own is not None and roles.controls:
        heldout = own[roles.controls], case.texts(roles.controls)
    if heldout is None or case.whole is None:
        return None
    return _loss(case.given.pipeline, heldout, mask=case.whole)


def _plan(case: _Case, baselines: Sequence[str], *, k: int, steps: int) -> MaskedSamples:
    """Plan the images: without masks, under masks and baselines, and with embeddings that were searched for."""
    pipeline, roles, own = case.given.pipeline, case.roles, case.given.own_images
    plan = MaskedSamples(pipeline, case.given.sampling.sized_as(own))
    every = range(len(case.given.prompts))
    plan.plain(UNMASKED, every, case.texts(every), [None] * len(every))
    texts = case.texts(roles.searched)
    for name, masks in case.masks(roles.searched).items():
        if name != UNMASKED and any(masks):
            plan.plain(name, roles.searched, texts, masks)
    if baselines:
        asked, predictor = case.texts(roles.asked), Predictor.of(pipeline)
        compared = compared_masks(baselines, case.located, texts, asked=asked, predictor=predictor, k=k)
        for name, masks in compared.items():
            if any(masks):
                plan.plain(name, roles.searched, texts, masks)
            else:
                log.warning("Nothing was sampled under the baseline %s: no prompt has neurons to compare with", name)
    if not steps or own is None:
        return plan
    # The search for the controls' images measures what it reaches without memorization.
    rows = [*roles.asked, *roles.tested[:CONTROLS]]
    for name, masks in case.masks(rows).items():
        of_interest = rows if name == UNMASKED else roles.asked
        masks = masks[: len(of_interest)]
        if name == UNMASKED or any(masks):
            texts = case.texts(of_interest)
            plan.searched(name + SEARCHED, of_interest, texts, masks, own=own[of_interest], steps=steps)
    return plan


def _figures(case: _Case, conditions: Conditions, loss: dict[str, Any] | None) -> dict[str, Any]:
    """Return the content of `localization.json` without the verdict."""
    roles, located = case.roles, case.located
    by_prompt = {found.prompt: found for found in located.found}
    asked, tested = ([by_prompt[text] for text in case.texts(rows)] for rows in (roles.asked, roles.tested))
    return {
        "schema_version": SCHEMA_VERSION,
        **provenance(case.given.pipeline),
        "model": case.given.model,
        "sampling": case.given.sampling.said(),
        "search": located.search,
        "prompts": {"asked": len(asked), "controls": len(roles.controls), "controls_tested": len(tested)},
        "located": {
            "asked": share([found.neurons > 0 for found in asked]),
            "false_alarms": share([found.neurons > 0 for found in tested]),
        },
        "neurons": neuron_figures(asked, located.sites, case.whole),
        **conditions.summarize(),
        "heldout_loss": loss,
    }


def _write(case: _Case, conditions: Conditions, results: dict[str, Any]) -> dict[str, Any]:
    """Write every file and return the content of `localization.json`."""
    folder, rows = case.given.output, conditions.rows()
    neurons = {found.prompt: found.neurons for found in case.located.found}
    for row in rows:
        row["neurons"] = neurons.get(row["prompt"])
    folder.mkdir(parents=True, exist_ok=True)
    save_masks(case.located, folder / "masks.safetensors")
    write_parquet(pa.Table.from_pylist(rows), folder / "localization.parquet")
    write_sheet(folder / "localization.png", conditions, rows=case.roles.asked, own_images=case.given.own_images)
    return write_results(results, folder / "localization.json")


def _loss(
    pipeline: StableDiffusionPipeline, heldout: tuple[Tensor, Sequence[str]], *, mask: NeuronMask
) -> dict[str, Any]:
    images, captions = heldout
    without = heldout_loss(pipeline, images, captions=list(captions))
    with mask.on(pipeline.unet):
        masked = heldout_loss(pipeline, images, captions=list(captions))
    return change_of_loss(without, masked)
