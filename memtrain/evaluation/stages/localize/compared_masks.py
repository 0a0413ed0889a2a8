"""Baseline masks by name, with which `--baselines` compares located neurons.

`initial`, `random` and `most_active` differ by prompt. `frequent`, `frequent_per_layer`, `frequent_sets` and
`random_frequent` are the same for every prompt, counted over the prompts asked about
(:mod:`memtrain.localization.baselines`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memtrain.localization.baselines import frequent, frequent_sets, most_active, random_neurons, unrefined
from memtrain.localization.predictor import Predictor
from memtrain.localization.results import Localization
from memtrain.models.neuron_mask import NeuronMask


def compared_masks(
    names: Sequence[str],
    located: Localization,
    texts: Sequence[str],
    *,
    asked: Sequence[str],
    predictor: Predictor,
    k: int,
) -> dict[str, list[NeuronMask | None]]:
    """Return per baseline the mask of each prompt; None where the prompt has no neurons to compare with.

    Args:
        names: names of :mod:`memtrain.evaluation.stages.localize.baseline_names`.
        located: located neurons.
        texts: P prompts.
        asked: prompts whose neurons are counted.
        predictor: predictor of the model.
        k: number of neurons of `most_active` and `frequent_per_layer` in each layer, and of `frequent` in total; number
            of sets of `frequent_sets`.
    """
    sites, settings = located.sites, located.search["settings"]
    factor, seed = float(settings["factor"]), int(settings["seed"])
    found = {one.prompt: one for one in located.found}
    counted = [found[text] for text in asked if text in found]
    widths = predictor.widths(predictor.sites("*"))

    def drawn(mask: NeuronMask | None, key: str) -> NeuronMask | None:
        return None if mask is None else random_neurons(mask, widths, seed=seed, key=key)

    most = frequent(counted, sites, k=k, factor=factor)
    own: dict[str, Callable[[str], NeuronMask | None]] = {
        "initial": lambda text: unrefined(found[text], sites, factor=factor),
        "random": lambda text: drawn(located.get(text), text),
        "most_active": lambda text: most_active(predictor, text, k=k, sites=settings["sites"], factor=factor),
    }
    shared: dict[str, Callable[[], NeuronMask | None]] = {
        "frequent": lambda: most,
        "frequent_per_layer": lambda: frequent(counted, sites, k=k, per_layer=True, factor=factor),
        "frequent_sets": lambda: frequent_sets(counted, sites, k=k, factor=factor),
        "random_frequent": lambda: drawn(most, "frequent"),
    }
    masks: dict[str, list[NeuronMask | None]] = {}
    for name in names:
        masks[name] = [shared[name]()] * len(texts) if name in shared else [own[name](text) for text in texts]
    return masks
