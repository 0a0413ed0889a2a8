"""Figures by networks for masking: NeMo's metrics under each prompt's mask, and distances of distributions."""

from __future__ import annotations

from typing import Any

from memtrain.evaluation.measures.nemo_metrics import distribution_metrics, nemo_metrics
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.localize.conditions import MASKED, UNION, UNMASKED, Conditions
from memtrain.evaluation.stages.roles import Roles


def masked_networks(given: StageInput, conditions: Conditions, roles: Roles, *, weights: Weights) -> dict[str, Any]:
    """Measure NeMo's metrics under each prompt's mask, and FID of controls without and with all masks together.

    Args:
        given: the pipeline, the prompts and the own images.
        conditions: the conditions with their images.
        roles: the roles of the prompts.
        weights: the weight files of the networks.
    """
    device, own = given.pipeline.device, given.own_images
    plain, results = conditions.found[UNMASKED], dict[str, Any](groups={})
    if masked := conditions.found.get(MASKED):
        for name, rows in (("asked", roles.asked), ("controls", roles.tested)):
            if rows:
                results["groups"][name] = nemo_metrics(
                    masked.images[[masked.rows.index(row) for row in rows]],
                    plain.images[[plain.rows.index(row) for row in rows]],
                    references=None if own is None else own[rows][:, None],
                    prompts=[given.prompts[row].text for row in rows],
                    weights=weights,
                    device=device,
                )
    if (all_masks := conditions.found.get(UNION)) and own is not None and len(roles.tested) > 1:
        rows = roles.tested
        for name, condition in (("distribution_without", plain), ("distribution_with", all_masks)):
            images = condition.images[[condition.rows.index(row) for row in rows]].flatten(0, 1)
            results[name] = distribution_metrics(own[rows], images, weights=weights, device=device)
    return results
