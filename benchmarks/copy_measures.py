"""The power of measures of copying to find copies, and their false-positive rates on other pictures.

Pictures are divided by chance into training pictures and held-out ones, which stand for generations that are no
copies. Each gets two questions, as in an evaluation. The first is whether it is a copy of *its own* picture. The
training picture of the most alike caption stands for this picture, or another window of the same photograph. The second
is whether it is a copy of *any* training picture. Half of the held-out pictures set each measure's threshold for each
question, at a false-positive rate of 1 % or the lowest that they promise; of the other half the rate is measured.
Copies are made of `--copies` training pictures: as they are, and by each edit of `memtrain.evaluation.measures.edits`.
Recall is the share of copies that reach the threshold, precision that of copies among as many copies as held-out
pictures. "Together" is what `aligned` or the copy detector finds, each beyond the median of its held-out values in
units of what lies between that and the 99th percentile, with one threshold for both.

`--photographs FOLDER` measures on photographs, cut into windows that do not overlap, as well.

    python benchmarks/copy_measures.py --copies 100 --json benchmarks/copy_measures.json
    python benchmarks/copy_measures.py --markdown --json benchmarks/copy_measures.json
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import memtrain
from memtrain.evaluation.measures.copying.base import AT_ONCE, CopyMeasure, CopyWeights, pictures
from memtrain.evaluation.measures.copying.calibration import PLAIN, rate_bound
from memtrain.evaluation.measures.copying.find import copy_measures
from memtrain.evaluation.measures.edits import EDITS, LIGHT
from memtrain.families.network_file import trust_scripts
from memtrain.functional.ranking import proportion_interval
from memtrain.functional.statistics import conformal_threshold

ASSETS = Path(__file__).parents[1] / "assets"
RATE, TRAINED = 0.01, 2 / 3
TOGETHER = ("aligned", "sscd")
SIDE, WINDOWS = 128, (4, 6)
"""Size of a photograph's window in pixels, and the number of windows down and across."""


def clip_art() -> tuple[Tensor, list[frozenset[str]]]:
    """`(n, 3, 64, 64)` uint8, and the words of each caption."""
    images, captions = {}, {}
    with tarfile.open(ASSETS / "clipart-pd.tar") as archive:
        for member in archive:
            file, (key, _, kind) = archive.extractfile(member), member.name.rpartition(".")
            if file is not None and kind == "txt":
                captions[key] = frozenset(file.read().decode().casefold().replace(",", " ").split())
            elif file is not None and kind in ("png", "webp"):
                images[key] = pixels(Image.open(io.BytesIO(file.read())))
    return torch.stack(list(images.values())), [captions[key] for key in images]


def photographs(folder: Path) -> tuple[Tensor, list[frozenset[str]]]:
    """Windows of the photographs in a folder, `(n, 3, 128, 128)` uint8, and the name of each one's photograph."""
    found, names = [], []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")):
        image = Image.open(path).convert("RGB")
        height, width = image.height // WINDOWS[0], image.width // WINDOWS[1]
        for row in range(WINDOWS[0]):
            for column in range(WINDOWS[1]):
                window = image.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
                side = min(window.size)
                shown = pixels(window.crop((0, 0, side, side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
                if float(shown.float().std()) > 10:  # sky shows nothing that could be copied
                    found.append(shown)
                    names.append(frozenset([path.stem]))
    return torch.stack(found), names


def pixels(image: Image.Image) -> Tensor:
    """`(3, H, W)` uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def measured(
    images: Tensor, words: Sequence[frozenset[str]], measures: list[CopyMeasure], *, copies: int, seed: int = 0
) -> dict[str, Any]:
    """Figures of every measure on these pictures, by question."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    cut = round(TRAINED * len(images))
    training, heldout = images[order[:cut]], images[order[cut:]]
    sources = training[:copies]
    partners = [
        max(range(cut), key=lambda one: _alike(words[int(order[one])], words[int(place)])) for place in order[cut:]
    ]
    chance = np.random.default_rng(seed)
    edited = {PLAIN: sources} | {
        name: torch.stack([pixels(edit(picture, chance)) for picture in pictures(sources)])
        for name, edit in EDITS.items()
    }
    null: dict[str, dict[str, Tensor]] = {"own": {}, "any": {}}
    alike: dict[str, dict[str, Tensor]] = {}
    seconds = {}
    for measure in measures:
        began = time.perf_counter()
        features = torch.cat([measure.describe(part) for part in training.split(AT_ONCE)])
        queries = measure.describe(heldout)
        null["any"][measure.name] = torch.stack(
            [measure.similarity(queries, part).amax(dim=1) for part in features.split(AT_ONCE)]
        ).amax(dim=0)
        seconds[measure.name] = (time.perf_counter() - began) / len(heldout)
        null["own"][measure.name] = _pairwise(measure, queries, features[partners])
        alike[measure.name] = {
            name: _pairwise(measure, measure.describe(copied), features[: len(copied)])
            for name, copied in edited.items()
        }
    questions = {question: _rows(values, alike) for question, values in null.items()}
    return {
        "pictures": len(images),
        "training": cut,
        "heldout": len(heldout),
        "copies": len(sources),
        "milliseconds_per_picture": {name: 1000 * value for name, value in seconds.items()},
        "questions": questions,
    }


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _pairwise(measure: CopyMeasure, first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([measure.similarity(first[i : i + 1], second[i : i + 1])[0, 0] for i in range(len(first))])


def _rows(null: dict[str, Tensor], alike: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return the figures of every measure, and of two together."""
    null, alike = dict(null), dict(alike)
    if set(TOGETHER) <= set(null):
        null["together"], alike["together"] = _together(null, alike)
    return {name: _figures(null[name], alike[name]) for name in null}


def _together(
    null: Mapping[str, Tensor], alike: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The higher of both, each in units of its held-out values."""
    units = {}
    for name in TOGETHER:
        values = null[name][: len(null[name]) // 2].double()
        middle = values.quantile(0.5)
        units[name] = (middle, values.quantile(0.99) - middle)
    higher = torch.stack([(null[name] - units[name][0]) / units[name][1] for name in TOGETHER]).amax(dim=0)
    return higher, {
        edit: torch.stack([(alike[name][edit] - units[name][0]) / units[name][1] for name in TOGETHER]).amax(dim=0)
        for edit in alike[TOGETHER[0]]
    }


def _figures(null: Tensor, alike: Mapping[str, Tensor]) -> dict[str, Any]:
    calibrating, judged = null[: len(null) // 2].double(), null[len(null) // 2 :].double()
    rate = max(RATE, 1 / (len(calibrating) + 1))
    threshold = conformal_threshold(calibrating, rate)
    false = judged > threshold
    edits = {name: values.double() > threshold for name, values in alike.items()}
    kinds = {
        "plain": edits[PLAIN],
        "light edits": torch.cat([edits[name] for name in LIGHT]),
        "all edits": torch.cat([found for name, found in edits.items() if name != PLAIN]),
    }
    wrong = float(false.double().mean())
    recall = {name: _share(found) for name, found in kinds.items()}
    return {
        "threshold": threshold,
        "false_positive_rate": rate,
        "rate_bound": rate_bound(len(calibrating), above=max(1, int(rate * (len(calibrating) + 1) + 1e-9))),
        "found_wrongly": _share(false),
        "recall": recall,
        "precision": {
            name: one["share"] / (one["share"] + wrong) if one["share"] + wrong else None
            for name, one in recall.items()
        },
        "edits": {name: _share(found) for name, found in edits.items()},
    }


def _share(found: Tensor) -> dict[str, Any]:
    k, n = int(found.sum()), len(found)
    return {"k": k, "n": n, "share": k / n, "interval": list(proportion_interval(k, n))}


def markdown(results: Mapping[str, Any]) -> str:
    """Three tables of each data set."""
    lines = []
    for data, figures in results["data"].items():
        lines += [f"{data}: {figures['training']} training pictures, {figures['heldout']} held out.", ""]
        for question, rows in figures["questions"].items():
            lines.append(
                f"| a copy of {question}? | false positives | plain | light edits | all edits | precision | ms |"
            )
            lines.append("|---|---|---|---|---|---|---|")
            for name, row in rows.items():
                cells = [_percent(row["recall"][kind]) for kind in ("plain", "light edits", "all edits")]
                cost = figures["milliseconds_per_picture"].get(name)
                cells += [f"{row['precision']['all edits']:.3f}", "" if cost is None else f"{cost:.1f}"]
                lines.append(f"| {name} | {_percent(row['found_wrongly'])} | {' | '.join(cells)} |")
            lines.append("")
        rows = figures["questions"]["own"]
        edits = list(next(iter(rows.values()))["edits"])
        lines += [f"| a copy of its own? | {' | '.join(edits)} |", "|---" * (len(edits) + 1) + "|"]
        for name, row in rows.items():
            lines.append(f"| {name} | {' | '.join(format(row['edits'][edit]['share'], '.2f') for edit in edits)} |")
        lines.append("")
    return "\n".join(lines)


def _percent(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['share']:.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    """Measure or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--copy_detector", help="an SSCD network, ONNX or TorchScript")
    parser.add_argument("--vision", help="folder of a vision transformer")
    parser.add_argument("--photographs", type=Path, help="folder of photographs")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", action="store_true", help="print the tables of what was measured before")
    options = parser.parse_args()
    trust_scripts()  # files that are named on this command line
    if not options.markdown:
        weights = CopyWeights(copy_detector=options.copy_detector, vision=options.vision)
        measures, left_out = copy_measures(["all"], weights=weights)
        data = {"clip art, 64 pixels": clip_art()}
        if options.photographs:
            data["photographs, 128 pixels"] = photographs(options.photographs)
        results = {
            "memtrain": memtrain.__version__,
            "rate": RATE,
            "left_out": left_out,
            "data": {name: measured(*given, measures, copies=options.copies) for name, given in data.items()},
        }
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(markdown(json.loads(options.json.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
