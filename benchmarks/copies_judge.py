"""An independent judge of copies: samples a pipeline and compares with the training images, knowing the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from copies_data import CopiedData
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from memtrain.data.dataset import CaptionedImages
from memtrain.data.heldout_split import split_heldout
from memtrain.data.source import open_source
from memtrain.evaluation.measures.replication import Replication, replication
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.families.table import Families
from memtrain.functional.keyed_draws import hash_order
from memtrain.functional.pixels import to_uint8

THRESHOLD = 0.7
"""Ratio of the distance to the own picture to the mean of the 50 nearest others, below which a picture counts as
reproduced."""
UNIQUE, HELDOUT = 40, 40
"""Prompts of pictures that are present once, and that are held out."""
CAPTIONS_EACH = 2
"""Captions asked of a planted picture that has several."""
RESOLUTION = 64
Asked = list[tuple[str, str, str]]
"""Group, name of the picture or caption, and key of the sample whose caption is asked."""


def judge(pipeline_folder: Path, data: CopiedData, *, sscd: Path | None) -> dict[str, Any]:
    """Find the pictures that a pipeline gives back.

    Args:
        pipeline_folder: the folder of the trained pipeline.
        data: what it was trained on, with the truth.
        sscd: ONNX file of a copy detector that takes uint8 images of 224 pixels; None for none.

    Returns:
        Per group `asked` and `reproduced` (pictures, or captions that are shared) and their ratios, and for the copy
        detector the highest similarity to an own picture.
    """
    source = open_source(str(data.path))
    keys = [sample.key for sample in source.samples]
    families = Families.read(data.families)
    split = split_heldout(keys, 0.1, families=families)
    train = CaptionedImages(source, _without_equals(split.train, keys, data, families), resolution=RESOLUTION)
    held = CaptionedImages(source, split.heldout, resolution=RESOLUTION)
    asked = _prompts(data, {keys[index] for index in split.train}, [keys[index] for index in split.heldout], source)
    samples = {sample.key: sample for sample in source.samples}
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None, use_safetensors=True)
    trace = generate(
        pipeline, [samples[key].caption for _, _, key in asked], sampling=Sampling(progress=False, batch_size=64)
    )
    training = torch.stack([to_uint8(train.pixel_values(row)) for row in range(len(train.samples))])
    place = {sample.key: row for row, sample in enumerate(train.samples)}
    own_of = {family: row for row, family in enumerate(_pictures(train, families))}
    held_of = {sample.key: row for row, sample in enumerate(held.samples)}
    own, index = [], []
    for group, _, key in asked:
        row = place.get(key, own_of.get(families.picture(key), -1)) if group != "heldout" else -1
        index.append(row)
        own.append(training[row] if row >= 0 else to_uint8(held.pixel_values(held_of[key])))
    numbers = _numbers(train, families, data)
    distances = replication(
        trace.images, torch.stack(own), training=training, own_index=torch.tensor(index), family=numbers
    )
    similar = None
    if sscd is not None:
        similar = _similarities(trace.images, own=index, training=training, family=numbers, network=sscd, held=own)
    return _figures(asked, distances, similar)


def _prompts(data: CopiedData, trained: set[str], held: list[str], source: Any) -> Asked:
    captions = {sample.key: sample.caption for sample in source.samples}
    asked: Asked = []
    for name, members in data.planted.items():
        inside = [key for key in members if key in trained]
        first = {captions[key]: key for key in reversed(inside)}
        # The picture's own caption, and one more where it has several.
        chosen = [first.pop(captions[name], None) if name in captions else None, *sorted(first.values())]
        asked += [("planted", name, key) for key in [key for key in chosen if key is not None][:CAPTIONS_EACH]]
    once = sorted((key for key in data.unique if key in trained), key=lambda key: hash_order(key, "judge"))
    asked += [("unique", key, key) for key in once[:UNIQUE]]
    asked += [("heldout", key, key) for key in sorted(held, key=lambda key: hash_order(key, "judge"))[:HELDOUT]]
    return asked


def _without_equals(train: list[int], keys: list[str], data: CopiedData, families: Families) -> list[int]:
    """Return one of each picture's equal files, and all edited files."""
    edited = data.path.parent.name.split("-")[0] in ("light", "strong")
    seen: set[str] = set()
    kept = []
    for index in train:
        name = families.picture(keys[index])
        if edited or name not in seen:
            kept.append(index)
        seen.add(name)
    return kept


def _pictures(train: CaptionedImages, families: Families) -> list[str]:
    return [families.picture(sample.key) for sample in train.samples]


def _numbers(train: CaptionedImages, families: Families, data: CopiedData) -> Tensor:
    """Return the training images that are variants of one: files of a picture, or pictures under a shared caption."""
    group = {key: name for name, members in data.planted.items() for key in members}
    numbers: dict[str, int] = {}
    names = [group.get(sample.key, families.picture(sample.key)) for sample in train.samples]
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])


def _similarities(
    images: Tensor, *, own: list[int], training: Tensor, family: Tensor, network: Path, held: list[Tensor]
) -> Tensor:
    """Highest similarity `(P,)` of a prompt's generations to a file of its own picture."""
    from onnxruntime import InferenceSession

    session = InferenceSession(str(network), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def describe(pictures: Tensor) -> Tensor:
        large = [
            np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC))
            for p in pictures
        ]
        found = torch.cat([torch.from_numpy(session.run(None, {name: x[None]})[0]) for x in large])
        return torch.nn.functional.normalize(found.flatten(1), dim=1)

    best = []
    for prompt, row in enumerate(own):
        files = (family == family[row]).nonzero()[:20, 0] if row >= 0 else None
        compared = held[prompt][None] if files is None else torch.cat([held[prompt][None], training[files]])
        best.append(float((describe(images[prompt]) @ describe(compared).T).max()))
    return torch.tensor(best)


def _figures(asked: Asked, distances: Replication, similar: Tensor | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in ("planted", "unique", "heldout"):
        ratios: dict[str, float] = {}
        nearest: dict[str, float] = {}
        for number, (own, name, _) in enumerate(asked):
            if own == group:
                ratios[name] = min(float(distances.best[number]), ratios.get(name, np.inf))
                if similar is not None:
                    nearest[name] = max(float(similar[number]), nearest.get(name, -1.0))
        found[group] = {
            "asked": len(ratios),
            "reproduced": sum(ratio < THRESHOLD for ratio in ratios.values()),
            "ratios": [round(ratio, 3) for ratio in ratios.values()],
            **({"sscd": [round(value, 3) for value in nearest.values()]} if nearest else {}),
        }
    return found
