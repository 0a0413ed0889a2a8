"""The source of held-out samples: the training images, the regularisation images, or edited copies."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from memtrain.data.edited_copies import wants_copies
from memtrain.data.heldout_split import Split, split_heldout
from memtrain.data.sample_table import keys_of
from memtrain.data.source import SampleSource
from memtrain.errors import ConfigurationError, DataError
from memtrain.families.table import Families
from memtrain.functional.statistics import MINIMUM_CALIBRATING

log = logging.getLogger(__name__)


def split_sources(
    data: Any, keys: list[str], regular: SampleSource | None, *, families: Families | None
) -> tuple[Split, Split, bool]:
    """Split the training images and the regularisation images, and decide whether edited copies are held out.

    Args:
        data: the data module with the settings.
        keys: the keys of the training images.
        regular: the regularisation images; None for none.
        families: the families of the training images.

    Raises:
        ConfigurationError: if regularisation images are to be held out and there are none.
    """
    setting, fraction = data.heldout_setting, 0.0 if data.heldout_path else data.heldout_fraction
    split = split_heldout(keys, fraction, families=families, most=data.heldout_most)
    regular_keys = [] if regular is None else keys_of(regular.samples)
    if setting == "regularisation" and regular is None:
        raise ConfigurationError(
            "heldout: regularisation holds out regularisation images, and there are none",
            expected="data.init_args.regularisation with the path of such images",
            remedy="set data.init_args.regularisation.path, or set data.init_args.heldout to auto",
        )
    if regular is not None and not data.heldout_path:
        regular_split = split_heldout(regular_keys, fraction, most=data.heldout_most)
        enough = fraction > 0 and len(regular_split.heldout) >= MINIMUM_CALIBRATING
        few = setting == "auto" and len(split.heldout) < MINIMUM_CALIBRATING
        if setting == "regularisation" or (enough and few):
            log.info("%d regularisation images are held out", len(regular_split.heldout))
            return split_heldout(keys, 0.0), regular_split, False
    edited = not data.heldout_path and wants_copies(
        setting, keys, families=families, fraction=fraction, held=len(split.heldout)
    )
    return split_heldout(keys, 0.0) if edited else split, Split(list(range(len(regular_keys))), [], []), edited


def require_apart(held: SampleSource, trained: Collection[str], *, path: str) -> None:
    """Refuse held-out samples from elsewhere that have keys of the training samples.

    Raises:
        DataError: if there are such samples.
    """
    shared = {sample.key for sample in held.samples}.intersection(trained)
    if shared:
        raise DataError(
            f"{len(shared)} key(s) are both in {path} and in {held.path}",
            expected="held-out samples that are not trained on",
            remedy="remove or rename them",
        )
