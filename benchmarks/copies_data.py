"""Data in which pictures are present as many files under names of their own, in seven forms; with what is true of them.

Ten clip-art pictures are planted among the others, each as many files:

- `exact`: 200 equal files.
- `light`: 200 light edits: a crop of at least nine tenths, a shift, colours, JPEG.
- `strong`: 200 strong edits: mirrored, cropped to 60 to 80 %, turned, grey or recoloured, smaller on white.
- `paraphrased`: 200 equal files under 100 different captions.
- `few`: 20 equal files, for ten epochs.
- `caption`: five captions with 200 different pictures each, which stand for the planted ones.
- `once`: 800 equal files, for one epoch.
- `clean`: no copies; what the others are compared with.

Files are named at random, so that no name tells what belongs together.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from experiment import ROOT
from PIL import Image, ImageEnhance, ImageOps

from memtrain.data.heldout_split import split_heldout
from memtrain.data.source import Sample, SampleSource, open_source
from memtrain.data.variations import vary_caption
from memtrain.families.table import Families
from memtrain.functional.keyed_draws import hash_numbers, hash_order

SOURCE = "assets/clipart-pd.tar"
PLANTED = 10
CAPTIONS = 5
"""Captions that are shared, in the form `caption`."""


@dataclass(frozen=True)
class Form:
    """One way in which data hold copies.

    Attributes:
        files: the number of files of each planted picture.
        steps: the number of steps of the training.
        edits: none, `light` or `strong`.
        captions: different captions of each planted picture.
    """

    files: int
    steps: int = 750
    edits: str | None = None
    captions: int = 1


FORMS = {
    "exact": Form(200),
    "light": Form(200, edits="light"),
    "strong": Form(200, edits="strong"),
    "paraphrased": Form(200, captions=100),
    "few": Form(20, steps=810),
    "caption": Form(200),
    "once": Form(800, steps=560),
    "clean": Form(1),
}
DOSES = (1, 2, 4, 8, 16, 64)
"""Files of a picture in the data of the dose curve."""
PER_DOSE = 6


@dataclass(frozen=True)
class CopiedData:
    """Data on disk.

    Attributes:
        path: the shard.
        families: the true families, as a table.
        planted: keys of each planted picture, or of the pictures under each shared caption, by name.
        unique: keys of all other pictures.
    """

    path: Path
    families: Path
    planted: dict[str, list[str]]
    unique: list[str]


def make(form: str, folder: Path, *, seed: int) -> CopiedData:
    """The data of a form, unless they are there.

    Args:
        form: one of :data:`FORMS`, or `dose`.
        folder: where to write.
        seed: which pictures are planted.
    """
    place = folder / f"{form}-{seed}"
    truth = place / "truth.json"
    if not truth.is_file():
        place.mkdir(parents=True, exist_ok=True)
        planted, unique = _write(form, place, seed=seed)
        truth.write_text(json.dumps({"planted": planted, "unique": unique}), encoding="utf-8")
    known = json.loads(truth.read_text(encoding="utf-8"))
    return CopiedData(place / "data.tar", place / "families.parquet", known["planted"], known["unique"])


def _write(form: str, place: Path, *, seed: int) -> tuple[dict[str, list[str]], list[str]]:
    source = open_source(str(ROOT / SOURCE))
    keys = [sample.key for sample in source.samples]
    # Of what is trained on, so that no planted picture is held out by chance.
    train = sorted(split_heldout(keys, 0.1).train, key=lambda index: hash_order(keys[index], f"copies {seed}"))
    files = list(_captioned(source, train, seed=seed) if form == "caption" else _copied(form, source, train, seed=seed))
    order = sorted(range(len(files)), key=lambda number: hash_order(files[number][2].key, "files"))
    planted: dict[str, list[str]] = {}
    pictures: dict[str, str] = {}
    captions: dict[str, str] = {}
    first: dict[str, str] = {}
    unique = []
    with tarfile.open(place / "data.tar", "w") as tar:
        for number in order:
            group, original, sample, image = files[number]
            _add(tar, f"{sample.key}.png", image)
            _add(tar, f"{sample.key}.txt", sample.caption.encode())
            if group is None:
                unique.append(sample.key)
            else:
                planted.setdefault(group, []).append(sample.key)
            pictures[sample.key] = first.setdefault(f"picture {original}", sample.key)
            captions[sample.key] = first.setdefault(f"caption {sample.caption.lower()}", sample.key)
    Families(pictures, captions).write(place / "families.parquet", pictures)
    return planted, unique


def _copied(
    form: str, source: SampleSource, train: list[int], *, seed: int
) -> Iterator[tuple[str | None, str, Sample, bytes]]:
    """Group, original, sample and PNG of every file."""
    counts = dict.fromkeys(train[:PLANTED], 1)
    chosen = FORMS.get(form)
    if chosen is not None:
        counts = dict.fromkeys(train[:PLANTED], chosen.files)
    else:
        counts = dict(zip(train, (dose for dose in DOSES for _ in range(PER_DOSE)), strict=False))
    for index, sample in enumerate(source.samples):
        image = source.load_image(index)
        group = sample.key if index in counts else None
        for number in range(counts.get(index, 1)):
            name = f"{seed} {sample.key} {number}"
            edited = (
                image if chosen is None or chosen.edits is None or number == 0 else EDITS[chosen.edits](image, name)
            )
            caption = sample.caption
            if chosen is not None and chosen.captions > 1:
                caption = vary_caption(caption, number % chosen.captions, name=f"{seed} {sample.key}")
            # Behind all other keys, so that a picture stays on the side of the split that it is on in the source.
            key = sample.key if number == 0 else f"zz{hash_order(name, 'name')[:12]}"
            yield group, sample.key, Sample(key, caption), _png(edited)


def _captioned(source: SampleSource, train: list[int], *, seed: int) -> Iterator[tuple[str | None, str, Sample, bytes]]:
    each = FORMS["caption"].files
    shared = {index: train[number // each] for number, index in enumerate(train[: CAPTIONS * each])}
    for index, sample in enumerate(source.samples):
        head = source.samples[shared[index]] if index in shared else None
        caption = sample.caption if head is None else head.caption
        group = None if head is None else head.key
        yield group, sample.key, Sample(sample.key, caption), _png(source.load_image(index))


def light_edit(image: Image.Image, name: str) -> Image.Image:
    """A crop of at least nine tenths, a shift, colours, JPEG."""
    draw = hash_numbers(f"light {name}", 8)
    width, height = image.size
    side = 0.9 + 0.1 * draw[0]
    left, top = draw[1] * (1 - side) * width, draw[2] * (1 - side) * height
    image = image.resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, left + side * width, top + side * height)
    )
    image = ImageEnhance.Brightness(image).enhance(0.9 + 0.2 * draw[3])
    image = ImageEnhance.Color(image).enhance(0.8 + 0.4 * draw[4])
    return _jpeg(image, round(60 + 35 * draw[5]))


def strong_edit(image: Image.Image, name: str) -> Image.Image:
    """Mirrored, cropped, turned, grey or recoloured, or smaller on white: two or three of these."""
    draw = hash_numbers(f"strong {name}", 8)
    width, height = image.size
    if draw[0] < 0.5:
        image = ImageOps.mirror(image)
    if draw[1] < 0.4:
        side = 0.6 + 0.2 * draw[2]
        left, top = draw[3] * (1 - side) * width, draw[4] * (1 - side) * height
        box = (left, top, left + side * width, top + side * height)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box)
    elif draw[1] < 0.7:
        small = image.resize((round(0.7 * width), round(0.7 * height)), Image.Resampling.BICUBIC)
        image = Image.new("RGB", (width, height), "white")
        image.paste(small, (round(draw[3] * 0.3 * width), round(draw[4] * 0.3 * height)))
    else:
        image = image.rotate(30 * draw[2] - 15, Image.Resampling.BICUBIC, fillcolor="white")
    if draw[5] < 0.25:
        image = ImageOps.grayscale(image).convert("RGB")
    elif draw[5] < 0.6:
        hue, saturation, value = image.convert("HSV").split()
        turned = np.roll(np.arange(256), round(64 * draw[6]) - 32).tolist()
        image = Image.merge("HSV", (hue.point(turned), saturation, value)).convert("RGB")
    return _jpeg(image, round(50 + 45 * draw[7]))


EDITS = {"light": light_edit, "strong": strong_edit}


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
