"""Files of NeMo's published scripts: activation statistics, and the table of neurons.

Source: ml-research/localizing_memorization_in_diffusion_models (Hintersdorf et al., NeurIPS 2024).
`statistics_additional_laion_prompts_v1_4.pt` is a pair of lists, mean and unbiased standard deviation of each neuron,
with one tensor `(C,)` per value layer, first those of the down blocks and last that of the middle. With
`--no_statistics` their script writes one list of activations `(P, C)` instead. The files hold tensors in lists, and are
read with `weights_only=True`, so that no code in a file is run. The layers have no names; they are the default layers
of a search, in the same order. `memorization_statistics.csv` has a row per prompt with `;` between columns, and neurons
as the text of a list of lists.
Cannot: tell the model, the number of prompts or the captions of a file of statistics, which the file does not hold.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.functional.moments import Moments
from memtrain.localization.found import Found
from memtrain.localization.predictor import Predictor
from memtrain.localization.statistics import ActivationStatistics
from memtrain.models.weights_file import one_line, refuse_infinite
from memtrain.records import written_whole

COLUMNS = ("Caption", "URL", "Initial Neurons", "Initial SSIM", "Refined Neurons", "Refined SSIM")
TheirStatistics = tuple[list[Tensor], list[Tensor], int]
"""Mean and standard deviation of each layer `(C,)`, and the number of prompts; 0 if the file does not hold it."""


def read_statistics(path: Path, predictor: Predictor) -> ActivationStatistics:
    """Read statistics of either kind, with the names of the model's layers.

    Args:
        path: the safetensors file of :meth:`ActivationStatistics.save`, or the `.pt` file of the published script.
        predictor: the searched model.

    Raises:
        ConfigurationError: if the file is of another kind, or does not fit the model.
    """
    if path.suffix == ".safetensors":
        return ActivationStatistics.load(path)
    mean, std, count = read_tensors(path)
    widths = predictor.widths(predictor.sites())
    found = [len(layer) for layer in mean]
    if found != list(widths.values()):
        raise ConfigurationError(
            f"{path} has {len(found)} layers of {found} neurons, but the model has {len(widths)} of "
            f"{list(widths.values())}",
            expected="statistics of the value layers of this model's down blocks and middle, in their order",
            remedy="measure statistics on this model: memtrain calibrate",
        )
    return ActivationStatistics(
        mean=dict(zip(widths, mean, strict=True)),
        std=dict(zip(widths, std, strict=True)),
        count=count,
        source=f"the file {path.name}",
    )


def read_tensors(path: Path) -> TheirStatistics:
    """Read a `.pt` file of the published script.

    Raises:
        ConfigurationError: if the file holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # errors of a broken pickle have no common class
        raise _refused(path, one_line(error)) from error
    for layer in _layers(content):
        refuse_infinite(layer, f"{path}: a layer of {tuple(layer.shape)}")
    if isinstance(content, list) and content and all(_tensors([layer], 2) and len(layer) > 1 for layer in content):
        moments = [Moments.of(layer.float()) for layer in content]
        return [one.mean.float() for one in moments], [one.std.float() for one in moments], len(content[0])
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not all(_tensors(part, 1) for part in content):
        raise _refused(path, f"its content is {type(content).__name__}")
    mean, std = ([layer.float() for layer in part] for part in content)
    if [len(layer) for layer in mean] != [len(layer) for layer in std]:
        raise _refused(path, "its means and deviations are of different sizes")
    return mean, std, 0


def write_statistics(statistics: ActivationStatistics, path: Path) -> None:
    """Write the pair of lists for the published scripts, with layers in the order of the statistics."""
    layers = [[tensor.float().clone() for tensor in part.values()] for part in (statistics.mean, statistics.std)]
    with written_whole(path) as unfinished:
        torch.save((layers[0], layers[1]), unfinished)


def write_table(path: Path, rows: Iterable[tuple[str, Found]], sites: Sequence[str]) -> None:
    """Write `memorization_statistics.csv` like the published search, without the addresses of images.

    Args:
        path: the file.
        rows: the prompts in their order, with their results.
        sites: the names of the searched layers.
    """
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=";")
        writer.writeheader()
        for prompt, found in rows:
            lists = [[list(layer) for layer in part] or [[] for _ in sites] for part in (found.initial, found.refined)]
            scores = [0 if score is None else score for score in (found.initial_score, found.score)]
            values = (prompt, "", json.dumps(lists[0]), scores[0], json.dumps(lists[1]), scores[1])
            writer.writerow(dict(zip(COLUMNS, values, strict=True)))


def _layers(content: object) -> list[Tensor]:
    """Return every tensor in nested lists."""
    if isinstance(content, Tensor):
        return [content]
    return [one for part in content for one in _layers(part)] if isinstance(content, list | tuple) else []


def _tensors(part: object, dimensions: int) -> bool:
    if not isinstance(part, (tuple, list)) or not part:
        return False
    return all(isinstance(layer, Tensor) and layer.dim() == dimensions for layer in part)


def _refused(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} holds no activation statistics: {reason}",
        expected="a .safetensors file of `calibrate`, or a .pt file of NeMo's script: two lists of tensors, or one",
        remedy="check the path, or measure statistics: memtrain calibrate",
    )
