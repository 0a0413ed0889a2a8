"""Masks to compare located neurons with: random neurons, the most active ones, and the selection without refinement.

Source: the comparisons of NeMo (Hintersdorf et al., NeurIPS 2024, appendix C): if as many random neurons did the same,
or the most active ones, or a first selection of ten times as many, finding them would show nothing.

    random_neurons(masks[prompt], predictor.widths(predictor.sites()), seed=0, key=prompt)
    most_active(predictor, prompt, k=5)
    unrefined(masks.found[0], masks.sites)
    frequent(masks.found, masks.sites, k=10)

Of the masks by frequency, which NeMo's script puts on for every prompt alike, ties go to the neuron that was found
first. Its random ones are meant to avoid all neurons that were found, and do not: what is to be avoided is computed and
left unused. :func:`random_neurons` does not avoid them either.
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
    """As many neurons in the same layers, chosen at random.

    Args:
        mask: the located neurons.
        widths: neurons of each layer.
        seed: of the draw.
        key: name of the prompt; its draw depends on the two alone.

    Raises:
        ConfigurationError: if the mask names a layer that `widths` lacks.
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
    """The `k` neurons of each layer with the highest mean absolute activation for a prompt.

    Args:
        predictor: the model.
        prompt: the prompt.
        k: neurons per layer, at least one; a narrower layer goes off whole.
        sites: glob over attention sites; None for the default.
        factor: what they are multiplied by.
    """
    activation = predictor.activations([prompt], predictor.sites(sites))
    channels = {site: highest(values[0], k).tolist() for site, values in activation.items()}
    return NeuronMask(channels, factor=factor)


def unrefined(found: Found, sites: Sequence[str], *, factor: float = 0.0) -> NeuronMask | None:
    """The first selection of a prompt, each neuron once; None where it does not count as memorized."""
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
    """The `k` neurons that the most prompts have; None if no prompt has any.

    Args:
        found: results of the prompts that count.
        sites: names of the searched layers.
        k: neurons, at least one.
        per_layer: of each layer, rather than of all together.
        initial: count those of the first selections instead of the refined ones.
        factor: what they are multiplied by.
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
    """The neurons of the `k` sets that the most prompts have in common to the last neuron; arguments as above."""
    sets = [one.channels(sites, initial=initial) for one in found]
    counted = Counter(tuple((site, tuple(chosen)) for site, chosen in each.items()) for each in sets if each)
    channels: dict[str, set[int]] = {}
    for each, _ in counted.most_common(k):
        for site, chosen in each:
            channels.setdefault(site, set()).update(chosen)
    return NeuronMask({site: sorted(chosen) for site, chosen in channels.items()}, factor=factor) if channels else None
