"""The rows of the ablation: what is trained, how, and where each method comes from.

Every row is the baseline with something added; the setting, and so the data, the order of visits and the noise, is the
same in all rows of one seed. Planted are three kinds of memorization: images that are repeated under one caption,
images that are repeated under varied captions, and captions that are repeated with varied images.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from experiment import ROOT, configuration

DATA = "assets/clipart-pd.tar"
DUPLICATES = "--data.init_args.duplicates."
SETTING: dict[str, Any] = {
    "--trainer.max_steps": 900,
    f"{DUPLICATES}count": 10,
    f"{DUPLICATES}repeats": 200,
    f"{DUPLICATES}varied_captions": 4,
    f"{DUPLICATES}varied_images": 4,
    f"{DUPLICATES}variants": 10,
}
"""Options of every run of the table; 200 visits per epoch also for the varied ones."""

DOSE_SETTING: dict[str, Any] = {
    "--trainer.max_steps": 900,
    f"{DUPLICATES}count": 6,
    f"{DUPLICATES}repeats": [2, 4, 8, 16, 64],
}
"""Options of every run of the dose curve: six images at each number of repetitions."""

EVALUATION = ("--kid", "true", "--detectors", "none")
"""Options of every evaluation: without the features of KID it fails instead of leaving the figure out, and detectors,
which take a third of the time, are no part of the table."""

CAPTION = ("--trainer.callbacks.init_args.kind",)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: the name of the row, its runs and its logs.
        kind: `baseline`, `recommended`, `published` or `ours`.
        source: where the method comes from.
        overlays: files in `configs/callbacks/`, without their ending, added to the configuration.
        overrides: further options; `{folder}` is the benchmark's folder and `{seed}` the seed.
        config: file in `configs/`, without its ending.
        seeds: how many seeds are wanted.
        needs_flags: trains without what the baseline of the same seed flagged.
        monitor: makes another monitor instead of the configuration's, given the folder of profiles.
    """

    name: str
    kind: str
    source: str
    overlays: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    config: str = "tiny_baseline"
    seeds: int = 3
    needs_flags: bool = False
    monitor: Callable[[str], Any] | None = None


def _watching(name: str, what: str, *, signals: tuple[str, ...] = (), **options: Any) -> Row:
    def monitor(profiles: str) -> Any:
        # Here, because what shows figures needs neither Lightning nor models.
        from memtrain.callbacks.monitor import MemorizationMonitor

        paths = ("denoising_loss:DenoisingLoss", "attention_entropy:AttentionEntropy", *signals)
        measured = [resolve_name(f"memtrain.signals.{path}")() for path in paths]
        return MemorizationMonitor(measured, reference_folder=profiles, **options)

    return Row(name, "watching", what, monitor=monitor)


WATCHING = (
    _watching("paired_4", "base model on the same noise every 4th batch", reference="paired", paired_every=4),
    _watching("paired_8", "base model on the same noise every 8th batch", reference="paired", paired_every=8),
    _watching("no_reference", "compared with the other training samples", reference=False),
    _watching("guidance_norm", "with the guidance norm every 4th batch", signals=("guidance_norm:GuidanceNorm",)),
    _watching("value_outliers", "with value outliers", signals=("value_outliers:ValueOutliers",)),
)
"""Other ways of watching, without a mitigation; they are timed only."""

SOMEPALLI = "Somepalli et al., 2023"
ROWS = (
    Row("baseline", "baseline", "plain fine-tuning, watched"),
    Row("recommended", "recommended", "`configs/tiny.yaml`", config="tiny"),
    Row("loss_skipping", "published", "Liu et al., 2024", ("loss_skipping",)),
    Row("guidance_norm_skipping", "published", "Wen et al., 2024", ("guidance_norm_skipping",)),
    Row("entropy_skipping", "published", "Ren et al., 2024", ("entropy_skipping",)),
    *(
        Row(f"caption_{kind}", "published", SOMEPALLI, ("caption_augmentation",), (*CAPTION, kind))
        for kind in ("add", "replace", "repeat")
    ),
    Row(
        "caption_multiple",
        "published",
        SOMEPALLI,
        ("caption_augmentation",),
        (*CAPTION, "multiple", "--trainer.callbacks.init_args.captions", "{folder}/captions.jsonl"),
    ),
    Row("caption_noise", "published", SOMEPALLI, ("caption_augmentation",), (*CAPTION, "noise")),
    Row("sample_skipping", "ours", "after Liu et al. and Wen et al.", ("sample_skipping",), seeds=1),
    Row("sample_reweighting", "ours", "memtrain", ("sample_reweighting",), seeds=1),
    Row("attention_regularization", "ours", "after Ren et al.", ("attention_regularization",), seeds=1),
    Row("neuron_masking", "ours", "after Hintersdorf et al., 2024", ("neuron_masking",), seeds=1),
    Row("memorization_sinks", "ours", "after Ghosal et al., 2025", ("memorization_sinks",), seeds=1),
    Row(
        "exclude",
        "ours",
        "trained again without what the baseline flagged",
        overrides=("--data.init_args.exclude", "{folder}/flagged-seed{seed}.csv"),
        needs_flags=True,
        seeds=1,
    ),
)
DOSE_ROWS = ROWS[:2]


def chosen(rows: tuple[Row, ...], names: list[str] | None) -> list[Row]:
    """The rows of these names, in the order of the table.

    Raises:
        ValueError: if there is no row of a name.
    """
    unknown = set(names or ()) - {row.name for row in rows}
    if unknown:
        raise ValueError(f"no row is called {sorted(unknown)}; there are {[row.name for row in rows]}")
    return [row for row in rows if names is None or row.name in names]


def missing_overlays(row: Row) -> list[str]:
    """Overlays that do not exist."""
    return [name for name in row.overlays if not _overlay(name).is_file()]


def _overlay(name: str) -> Path:
    return ROOT / "configs" / "callbacks" / f"{name}.yaml"


def identity(row: Row, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a row's run without its seed; figures of another identity belong to another row."""
    return {
        "config": configuration(ROOT / "configs" / f"{row.config}.yaml"),
        "overlays": {name: configuration(_overlay(name)) for name in row.overlays},
        "overrides": list(row.overrides),
        "setting": dict(setting),
    }


def training_arguments(row: Row, seed: int, *, folder: Path, setting: Mapping[str, Any] = SETTING) -> list[str]:
    """Arguments of `train.py fit` but for the run's folder.

    Args:
        row: the row.
        seed: the seed of the order, the noise and the choice of planted images.
        folder: the folder of the benchmark.
        setting: options of every row.
    """
    files = [f"configs/{row.config}.yaml", *(f"configs/callbacks/{name}.yaml" for name in row.overlays)]
    options = {**setting, "--seed_everything": seed, f"{DUPLICATES}seed": seed}
    return [
        *(word for file in files for word in ("--config", file)),
        *(str(word) for option in options.items() for word in option),
        *("--trainer.enable_progress_bar", "false"),
        *(word.format(folder=folder, seed=seed) for word in row.overrides),
    ]


def alternative_captions(facts: Mapping[str, Any], caption: str) -> list[str]:
    """Other captions of an image, made from what its JSON says.

    Args:
        facts: a mapping with `label`, `colours` and `tags`.
        caption: its own caption, which is left out.
    """
    label, colours, tags = facts["label"], " and ".join(facts["colours"]), list(facts["tags"])
    found = [
        f"a picture of {label}",
        f"{label}, {', '.join(tags)}" if tags else f"{label}, clip art",
        f"clip art with {' and '.join(tags[:2])}" if tags else f"a drawing of {label}",
        f"{label} in {colours}" if colours else f"a simple {label}",
        f"a {colours} drawing of {label}" if colours else f"an illustration of {label}",
    ]
    return [text for text in dict.fromkeys(found) if text != caption]


def write_captions(path: Path) -> None:
    """JSON lines with the key and the other captions of every image, for caption augmentation with several captions.

    Varied images of one caption get those of their original; images under varied captions have several already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    variants = range(SETTING[f"{DUPLICATES}variants"])
    with tarfile.open(ROOT / DATA) as tar:
        contents = {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}
    with path.open("w", encoding="utf-8") as file:
        for name, content in contents.items():
            key, ending = name.rsplit(".", 1)
            if ending == "json":
                others = alternative_captions(json.loads(content), contents[f"{key}.txt"].decode("utf-8").strip())
                for one in (key, *(f"{key}#image{number}" for number in variants)):
                    print(json.dumps({"key": one, "captions": others}), file=file)


def read_flagged(path: Path) -> list[str]:
    """The keys in a run's flagged.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row["key"] for row in csv.DictReader(file)]


def write_flagged(path: Path, keys: list[str]) -> None:
    """A CSV file with a column `key`, as a run's flagged.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["key"], *([key] for key in keys)])
