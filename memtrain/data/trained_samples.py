"""The marks by which a checkpoint recognizes its samples: a number for each key and caption, and the visits of each.

The marks take 20 bytes per sample, in the order of the data. They tell what has become of the data since. Three cases
can be continued: nothing changed, the same samples have another order, or `exclude` leaves samples out. They can,
because a visit is identified by its sample and its number in the epoch, wherever the sample stands. Other changes are
refused: samples that are new, missing or have another caption were measured as something else, or not at all. The path
is not compared, so data may be moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.data.dataset import CaptionedImages
from memtrain.errors import ConfigurationError

VARIANTS = 64
"""The number of made samples of an excluded sample that are looked for."""


def number_of(text: str) -> int:
    """Turn a text into a number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)


def numbers_of(texts: Iterable[str]) -> Tensor:
    """Turn texts into numbers."""
    return torch.tensor([number_of(text) for text in texts], dtype=torch.int64)


def trained_samples(dataset: CaptionedImages) -> dict[str, Tensor]:
    """Return the part of a checkpoint that describes the samples."""
    return {
        "keys": numbers_of(sample.key for sample in dataset.samples),
        "captions": numbers_of("\n".join([one.caption, *one.alternatives]) for one in dataset.samples),
        "visits": torch.tensor(dataset.visits, dtype=torch.int32),
    }


def positions_since(
    saved: Mapping[str, Tensor], dataset: CaptionedImages, *, excluded: Iterable[str] = ()
) -> Tensor | None:
    """Return the present place of each visit of a checkpoint's data.

    Args:
        saved: the part of the checkpoint that describes the samples.
        dataset: the present training dataset.
        excluded: the keys that are left out now.

    Returns:
        The position of each of the earlier visits, -1 for a visit that is left out; None if nothing changed.

    Raises:
        ConfigurationError: if the data are different.
    """
    now = trained_samples(dataset)
    if all(torch.equal(saved[name], now[name]) for name in now):
        return None
    was, rows = saved["keys"].tolist(), {key: row for row, key in enumerate(now["keys"].tolist())}
    made = [f"{key}{end}" for key in excluded for end in ("", *_endings())]
    gone = set(was) - rows.keys() - {number_of(key) for key in made}
    came = [dataset.samples[row].key for key, row in rows.items() if key not in set(was)]
    if gone or came:
        first = f", first {came[0]!r}" if came else ""
        raise ConfigurationError(
            f"data: of the {len(was):,} samples that the checkpoint was trained on, {len(gone):,} are missing, and "
            f"{len(came):,} are new{first}",
            expected="the same samples, except samples that data.init_args.exclude leaves out",
            remedy="restore the data (or exclude), or begin a new run from the trained model "
            "(model.init_args.pretrained: "
            "the run's pipeline/)",
        )
    common = [(old, rows[key]) for old, key in enumerate(was) if key in rows]
    _require_same(saved, now, common, dataset)
    return _moved(saved["visits"].tolist(), dict(common), dataset.visits)


def _endings() -> list[str]:
    return [f"#{kind}{number}" for kind in ("caption", "image") for number in range(VARIANTS)]


def _require_same(
    saved: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    common: Sequence[tuple[int, int]],
    dataset: CaptionedImages,
) -> None:
    for name, what, fixed in (("captions", "caption", False), ("visits", "number of visits per epoch", True)):
        odd = [row for old, row in common if saved[name][old] != now[name][row]]
        # Regularisation images share the visits that the other samples leave them.
        odd = [row for row in odd if not (fixed and row in dataset.rotating)]
        if odd:
            raise ConfigurationError(
                f"data: {len(odd):,} of {len(common):,} samples have another {what} than in the checkpoint, first "
                f"{dataset.samples[odd[0]].key!r}",
                expected="the same samples as when the run began",
                remedy="restore the captions, repeats and duplicates, or begin a new run from the trained model "
                "(model.init_args.pretrained: the run's pipeline/)",
            )


def _moved(was: Sequence[int], rows: Mapping[int, int], visits: Sequence[int]) -> Tensor:
    starts = [0]
    for count in visits:
        starts.append(starts[-1] + count)
    found: list[int] = []
    for old, count in enumerate(was):
        row = rows.get(old)
        known = 0 if row is None else min(count, visits[row])
        found += [starts[row] + number for number in range(known)] if row is not None else []
        found += [-1] * (count - known)
    return torch.tensor(found, dtype=torch.int64)


def plain_options(value: Any) -> Any:
    """Return the fields of an options object that say what is done, without the places of files."""
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is None:
        return value
    return {name: plain_options(getattr(value, name)) for name in fields if name not in ("path", "folder", "only_in")}
