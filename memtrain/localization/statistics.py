"""Statistics of value neurons for prompts that are not memorized: mean and standard deviation of their activation.

Source: NeMo (Hintersdorf et al., NeurIPS 2024, section 3.2): the activation of a neuron for a prompt is |to_v(text)|
averaged over all tokens, including padding. Its mean and unbiased standard deviation are taken over prompts that the
model does not memorize (in the paper 50,000 captions of LAION).

Cost: the text encoder and one linear layer per site, no denoiser pass (but see `Predictor.activations` for denoisers
other than a UNet). Prompts are streamed, so their number is not limited by memory.

    measured = ActivationStatistics.measure(Predictor.of(pipeline), (line.strip() for line in open("captions.txt")))
    measured.save(Path("statistics.safetensors"))
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.prompt_texts import prompt_stream
from memtrain.files.shown import shown
from memtrain.functional.moments import Moments
from memtrain.functional.neurons import neuron_z_score
from memtrain.localization.predictor import Predictor
from memtrain.models.weights_file import metadata_json, tensors
from memtrain.records import written_whole

FORMAT = "memtrain.activation_statistics.1"


@dataclass(frozen=True)
class ActivationStatistics:
    """Mean and standard deviation of every neuron's activation.

    Attributes:
        mean: the means by site, `(C,)` fp32.
        std: the unbiased standard deviations by site, `(C,)` fp32.
        count: the number of prompts.
        model: the origin of the model.
        fingerprint: the fingerprint of the measured value layers.
        source: the description of the prompts.
    """

    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    count: int
    model: str = ""
    fingerprint: str = ""
    source: str = ""

    @staticmethod
    def measure(
        predictor: Predictor,
        prompts: Iterable[str],
        *,
        sites: str | None = None,
        batch_size: int = 64,
        source: str = "",
    ) -> ActivationStatistics:
        """Measure statistics over any source of prompts; a repeated prompt counts repeatedly.

        Args:
            predictor: the model.
            prompts: the prompts, at least two.
            sites: the glob over attention sites; None for the default.
            batch_size: the number of prompts encoded at once.
            source: the description of the prompts.

        Raises:
            ConfigurationError: if there are fewer than two prompts.
        """
        chosen = predictor.sites(sites)
        moments: dict[str, Moments] = {}
        stream = prompt_stream(prompts)
        while batch := list(itertools.islice(stream, batch_size)):
            for site, activation in predictor.activations(batch, chosen).items():
                found = Moments.of(activation.cpu())
                moments[site] = moments[site].merge(found) if site in moments else found
        count = int(next(iter(moments.values())).count) if moments else 0
        if count < 2:
            raise ConfigurationError(
                f"{count} prompts are too few for activation statistics",
                expected="at least 2, and usually thousands",
                remedy="name more prompts that the model does not memorize",
            )
        return ActivationStatistics(
            mean={site: found.mean.float() for site, found in moments.items()},
            std={site: found.std.float() for site, found in moments.items()},
            count=count,
            model=predictor.name,
            fingerprint=predictor.fingerprint(chosen),
            source=source,
        )

    def check(self, widths: Mapping[str, int]) -> None:
        """Check that the statistics cover the searched layers.

        Args:
            widths: the number of neurons of each site.

        Raises:
            ConfigurationError: if a site is missing or has another width.
        """
        known = {site: len(mean) for site, mean in self.mean.items()}
        wrong = [site for site, width in widths.items() if known.get(site) != width]
        if wrong:
            raise ConfigurationError(
                f"The activation statistics do not fit {len(wrong)} of {len(widths)} layers: {wrong[0]!r} has "
                f"{widths[wrong[0]]} neurons, but the statistics have {known.get(wrong[0], 'no such layer')}",
                expected="statistics of this model",
                remedy="measure statistics again: memtrain calibrate",
            )

    def z_scores(self, activation: Mapping[str, Tensor], sites: Sequence[str]) -> list[Tensor]:
        """Compute the distance of a prompt's activation from the mean in standard deviations, `(C,)` for each site."""
        return [neuron_z_score(activation[site].cpu(), self.mean[site], self.std[site]) for site in sites]

    def save(self, path: Path) -> None:
        """Write a safetensors file with `mean/<site>` and `std/<site>`, and their origin in its metadata."""
        tensors = {f"mean/{site}": mean.contiguous() for site, mean in self.mean.items()}
        tensors |= {f"std/{site}": std.contiguous() for site, std in self.std.items()}
        origin = {"count": self.count, "model": self.model, "fingerprint": self.fingerprint, "source": self.source}
        metadata = {"format": FORMAT, "layers": json.dumps(list(self.mean)), "origin": json.dumps(origin)}
        with written_whole(path) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)

    @staticmethod
    def load(path: Path) -> ActivationStatistics:
        """Read a file that :meth:`save` wrote.

        Raises:
            ConfigurationError: if the file holds something else, or lacks a layer that it names.
        """
        try:
            found, metadata = tensors(path, "activation statistics")
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {shown(metadata.get('format'))!r}")
            layers, origin = metadata_json(metadata, "layers", path), metadata_json(metadata, "origin", path)
            if not isinstance(layers, list) or not isinstance(origin, dict) or not layers:
                raise ValueError("its metadata name no layers")
            mean, std = ({str(site): found[f"{kind}/{site}"].float() for site in layers} for kind in ("mean", "std"))
            for site in mean:
                if mean[site].shape != std[site].shape or mean[site].dim() != 1:
                    raise ValueError(f"{shown(site)!r} has means and standard deviations of different shapes")
            return ActivationStatistics(mean, std, **origin)
        except (ConfigurationError, DataError, KeyError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{path} holds no activation statistics: {str(error).splitlines()[0]}",
                expected=f"a safetensors file of format {FORMAT}, with mean and deviation of each neuron",
                remedy="check the path, or measure statistics again: memtrain calibrate",
            ) from error


def word_prompts(tokenizer: Any, count: int, *, seed: int = 0) -> list[str]:
    """Make prompts of 3 to 12 random words of a tokenizer's vocabulary, which a model cannot have memorized.

    They replace captions if there are none. Captions of the kind that the model was trained on are a better comparison.

    Args:
        tokenizer: the CLIP tokenizer, whose whole words end with `</w>`.
        count: the number of prompts.
        seed: the seed of the draw.

    Raises:
        ConfigurationError: if the vocabulary has fewer than 20 words.
    """
    vocabulary = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")]
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    if len(words) < 20:
        raise ConfigurationError(
            f"The vocabulary has {len(words)} whole words",
            expected="at least 20 words for prompts",
            remedy="pass other_prompts with captions that the model does not memorize",
        )
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
    chosen = [torch.randint(len(words), (length,), generator=generator).tolist() for length in lengths]
    return [" ".join(words[index] for index in row) for row in chosen]
