"""The group of each sample of a run: planted, unique, repeated, held out and others."""

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
    """Return the group of each sample, by key.

    Args:
        trained: the keys of the training samples, including made samples.
        repeated: the keys of samples that are planted by repetition.
        made: the made samples.
        families: the families of all samples; None if files are counted instead of pictures.
        visited: the visits of every training sample, by key; a key that is not in `trained` is a regularisation image.
        heldout: the keys of held-out samples.
    """
    found = {key: PLANTED if key in repeated else UNIQUE for key in trained}
    found |= {one.sample.key: one.group for one in made}
    if families is not None:
        found |= repeated_pictures(found, families)
    found |= {key: REGULARISATION for key in visited if key not in found}
    return found | dict.fromkeys(heldout, HELDOUT)
