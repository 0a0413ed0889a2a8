"""The shares of copies found, by edit, and of pictures merged with another one by mistake.

Each of `--images` pictures of the embedded clip art gets one copy by each edit
(:mod:`memtrain.evaluation.measures.edits`). Two tables:

- *descriptors alone*: the share of copies whose similarity to their picture lies above the 99th percentile of each
  picture's similarity to its nearest other picture (1 % of false merges). The share of copies with their picture among
  their five nearest is also given, because this is the task of a descriptor.
- *families*: the copies of one edit are added to all pictures, families are found (`find_families`), and the share of
  copies is counted that is in its picture's family. False merges are pictures without copies that are joined to
  another one, in the collection by itself. The threshold is calibrated again each time.

A copy detector takes part where `--copy_detector FILE` is given, EfficientNet-Lite0 where the extra `quality` is
installed.

    python benchmarks/near_duplicates.py --images 100 --json benchmarks/near_duplicates.json
    python benchmarks/near_duplicates.py --markdown --json benchmarks/near_duplicates.json
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.edits import EDITS
from memtrain.families.descriptors.base import Descriptor
from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.descriptors.copy_detector import CopyDetector
from memtrain.families.descriptors.efficientnet_lite0 import EfficientNetFeatures
from memtrain.families.exact import pixel_hash
from memtrain.families.find import FoundFamilies, find_families
from memtrain.families.looks import thumbnail
from memtrain.families.network_file import trust_scripts
from memtrain.families.search import NEIGHBOURS

ASSETS = Path(__file__).parents[1] / "assets"
RATE = 0.01
"""Rate of false merges."""


@dataclass(frozen=True)
class Looks:
    """The kept values of n images."""

    hashes: NDArray[np.uint8]
    descriptors: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]

    @classmethod
    def of(cls, images: Sequence[Image.Image], descriptor: Descriptor) -> Looks:
        """Looked at."""
        hashes = np.array([list(pixel_hash(image)) for image in images], dtype=np.uint8)
        return cls(hashes, descriptor.describe(images), np.stack([thumbnail(image) for image in images]))

    def __add__(self, other: Looks) -> Looks:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Looks(*(np.concatenate(pair) for pair in pairs))


def collection(name: str) -> list[Image.Image]:
    """The images of an embedded collection, in order."""
    with tarfile.open(ASSETS / f"{name}.tar") as tar:
        names = sorted(member for member in tar.getnames() if member.endswith(".png"))
        return [Image.open(tar.extractfile(member)).convert("RGB") for member in names]  # type: ignore[arg-type]


def families(looks: Looks) -> FoundFamilies:
    """Make samples of images without captions, named by their number."""
    keys = [str(number) for number in range(len(looks.hashes))]
    return find_families(keys, [""] * len(keys), looks, false_merge_rate=RATE)


def measure(name: str, make: Callable[[], Descriptor], images: list[Image.Image], chosen: NDArray[np.int64]) -> Any:
    """All figures of one descriptor."""
    descriptor = make()
    descriptor.describe(images[:8])
    began = time.process_time()
    own = Looks.of(images, descriptor)
    milliseconds = (time.process_time() - began) / len(images) * 1000
    similarity = own.descriptors @ own.descriptors.T
    np.fill_diagonal(similarity, -1)
    threshold = float(np.quantile(similarity.max(axis=1), 1 - RATE))
    began = time.process_time()
    alone = families(own)
    result: dict[str, Any] = {
        "descriptor": name,
        "milliseconds_per_image": milliseconds,
        "milliseconds_to_find": (time.process_time() - began) / len(images) * 1000,
        "threshold": alone.threshold,
        "calibrated_on": alone.calibrated_on,
        "pictures_merged": len(alone.families.pictures),
        "pictures": len(images),
        "copies": len(chosen),
        "edits": {},
    }
    for edit, change in EDITS.items():
        chance = np.random.default_rng(1)
        copies = Looks.of([change(images[number], chance) for number in chosen], descriptor)
        to_all = copies.descriptors @ own.descriptors.T
        to_own = to_all[np.arange(len(chosen)), chosen]
        found = families(own + copies).families
        names = [found.picture(str(number)) for number in range(len(images) + len(chosen))]
        result["edits"][edit] = {
            "descriptor_alone": float((to_own >= threshold).mean()),
            "among_nearest": float(((to_all > to_own[:, None]).sum(axis=1) < NEIGHBOURS).mean()),
            "families": float(np.mean([names[len(images) + at] == names[of] for at, of in enumerate(chosen)])),
        }
        print(f"{name}: {edit}: {result['edits'][edit]}", flush=True)
    return result


def table(results: Sequence[Any]) -> str:
    """All results as one table."""
    lines = ["| descriptor | ms an image | " + " | ".join(EDITS) + " | pictures merged |"]
    lines.append("|" + "---|" * (len(EDITS) + 3))
    for result in results:
        total = f"{result['milliseconds_per_image']:.1f}"
        alone, near, whole = (
            " | ".join(f"{figures[kind]:.2f}" for figures in result["edits"].values())
            for kind in ("descriptor_alone", "among_nearest", "families")
        )
        merged = f"{result['pictures_merged']} of {result['pictures']:,}"
        lines.append(f"| {result['descriptor']}, alone | {total} | {alone} | 12 (by definition) |")
        lines.append(f"| {result['descriptor']}, picture among the five nearest | {total} | {near} | – |")
        find = f"+ {result['milliseconds_to_find']:.1f}"
        lines.append(f"| **{result['descriptor']}, families** | {find} | {whole} | {merged} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="pictures that get copies")
    parser.add_argument("--copy_detector", nargs="*", default=[], help="TorchScript or ONNX files, one row each")
    parser.add_argument("--only", nargs="*", help="names of the rows to measure; default all that can be")
    parser.add_argument("--json", type=Path, help="file of the results; rows that it holds are not measured again")
    parser.add_argument("--markdown", action="store_true", help="print the table of --json and measure nothing")
    options = parser.parse_args()
    trust_scripts()  # files that are named on this command line
    results = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    if not options.markdown:
        torch.set_num_threads(1)
        images = collection("clipart-pd")
        chosen = np.sort(np.random.default_rng(0).choice(len(images), min(options.images, len(images)), replace=False))
        rows: dict[str, Callable[[], Descriptor]] = {
            "built-in": BuiltIn,
            "EfficientNet-Lite0": EfficientNetFeatures,
            **{Path(path).stem: partial(CopyDetector, path) for path in options.copy_detector},
        }
        if not options.copy_detector:
            print("No copy detector takes part: none was given with --copy_detector.")
        for name, make in rows.items():
            wanted = options.only is None or name in options.only
            if not wanted or any(result["descriptor"] == name for result in results):
                continue
            try:
                results.append(measure(name, make, images, chosen))
            except ConfigurationError as error:
                print(f"{name} is left out: {error.problem}")
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
