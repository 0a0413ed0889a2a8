"""Baseline masks for located neurons: random neurons, the most active neurons, and the unrefined selection.

Source: the comparisons of NeMo (Hintersdorf et al., NeurIPS 2024, appendix C). If as many random neurons had the same
effect, or the most active ones, or a first selection of ten times as many, the located neurons would show nothing.

    random_neurons(masks[prompt], predictor.widths(predictor.sites()), seed=0, key=prompt)
    most_active(predictor, prompt, k=5)
    unrefined(masks.found[0], masks.sites)
    frequent(masks.found, masks.sites, k=10)

NeMo's script uses the masks by frequency for every prompt. Ties go to the neuron that was found first. Its random
neurons are meant to avoid all located neurons, but do not, because the script does not use the computed list.
:func:`random_neurons` does not avoid located neurons either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import seed_of
from memtrain.functional.ranking import highest
from memtrain.localization.found import Found
from memtrain.localization.predictor import Predictor
from memtrain.models.neuron_mask import NeuronMask


def random_neurons(mask: NeuronMask, widths: Mapping[str, int], *, seed: int, key: str) -> NeuronMask:
    """Choose the same number of random neurons in the same layers.

    Args:
        mask: the located neurons.
        widths: the number of neurons of each layer.
        seed: the seed of the draw.
        key: the name of the prompt; the draw depends only on the seed and this name.

    Raises:
        ConfigurationError: if `widths` lacks a layer of the mask.
    """
    missing = [site for site in mask.channels if site not in widths]
    if missing:
        raise ConfigurationError(
            f"The mask has neurons in {missing[0]!r}, whose width is not given",
            expected="the widths of all layers of the mask",
            remedy="use predictor.widths(predictor.sites('*'))",
        )
    channels = {}
    for site, chosen in mask.channels.items():
        generator = torch.Generator().manual_seed(seed_of("random neurons", seed, key, site))
        channels[site] = torch.randperm(widths[site], generator=generator)[: len(chosen)].tolist()
    return NeuronMask(channels, factor=mask.factor)


def most_active(
    predictor: Predictor, prompt: str, *, k: int, sites: str | None = None, factor: float = 0.0
) -> NeuronMask:
    """Choose the `k` neurons of each layer with the highest mean absolute activation for a prompt.

    Args:
        predictor: the model.
        prompt: the prompt.
        k: the number of neurons per layer, at least one; a narrower layer is masked as a whole.
        sites: the glob over attention sites; None for the default.
        factor: the factor on the neurons.
    """
    activation = predictor.activations([prompt], predictor.sites(sites))
    channels = {site: highest(values[0], k).tolist() for site, values in activation.items()}
    return NeuronMask(channels, factor=factor)


def unrefined(found: Found, sites: Sequence[str], *, factor: float = 0.0) -> NeuronMask | None:
    """Return the first selection of a prompt, each neuron once; None if it does not count as memorized."""
    channels = {site: sorted(set(neurons)) for site, neurons in zip(sites, found.initial, strict=False) if neurons}
    return NeuronMask(channels, factor=factor) if channels else None


def frequent(
    found: Sequence[Found],
    sites: Sequence[str],
    *,
    k: int,
    per_layer: bool = False,
    initial: bool = False,
    factor: float = 0.0,
) -> NeuronMask | None:
    """Choose the `k` neurons that most prompts have; None if no prompt has any.

    Args:
        found: the results of the prompts that count.
        sites: the names of the searched layers.
        k: the number of neurons, at least one.
        per_layer: whether to choose `k` neurons of each layer, instead of all layers together.
        initial: whether to count the neurons of the first selections, instead of the refined ones.
        factor: the factor on the neurons.
    """
    counted: Counter[tuple[str, int]] = Counter()
    for site in sites:
        for one in found:
            counted.update((site, neuron) for neuron in one.channels(sites, initial=initial).get(site, []))
    left = dict.fromkeys(sites if per_layer else [""], k)
    channels: dict[str, list[int]] = {}
    for (site, neuron), _ in counted.most_common():
        place = site if per_layer else ""
        if left[place]:
            left[place] -= 1
            channels.setdefault(site, []).append(neuron)
    return NeuronMask({site: sorted(chosen) for site, chosen in channels.items()}, factor=factor) if channels else None


def frequent_sets(
    found: Sequence[Found], sites: Sequence[str], *, k: int, initial: bool = False, factor: float = 0.0
) -> NeuronMask | None:
    """Choose the neurons of the `k` most frequent equal sets of prompts; arguments as for :func:`frequent`."""
    sets = [one.channels(sites, initial=initial) for one in found]
    counted = Counter(tuple((site, tuple(chosen)) for site, chosen in each.items()) for each in sets if each)
    channels: dict[str, set[int]] = {}
    for each, _ in counted.most_common(k):
        for site, chosen in each:
            channels.setdefault(site, set()).update(chosen)
    return NeuronMask({site: sorted(chosen) for site, chosen in channels.items()}, factor=factor) if channels else None
