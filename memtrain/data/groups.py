"""Which group each sample of a run belongs to: planted, unique, repeated, held out, ..."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from memtrain.data.known_families import repeated_pictures
from memtrain.data.planted import MadeSample
from memtrain.families.table import Families
from memtrain.records import HELDOUT, PLANTED, REGULARISATION, UNIQUE


def groups_of(
    trained: Sequence[str],
    *,
    repeated: Collection[str],
    made: Iterable[MadeSample],
    families: Families | None,
    visited: Mapping[str, int],
    heldout: Iterable[str],
) -> dict[str, str]:
    """The group of each sample, by key.

    Args:
        trained: keys of the training data that are trained on, and of what was made of them.
        repeated: keys of the data that are planted by repetition.
        made: samples that were made.
        families: of all of them; None where files are counted.
        visited: visits of every training sample, by key; what is not among `trained` keeps the model as it is.
        heldout: keys of held-out samples.
    """
    found = {key: PLANTED if key in repeated else UNIQUE for key in trained}
    found |= {one.sample.key: one.group for one in made}
    if families is not None:
        found |= repeated_pictures(found, families)
    found |= {key: REGULARISATION for key in visited if key not in found}
    return found | dict.fromkeys(heldout, HELDOUT)
