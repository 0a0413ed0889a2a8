"""Signal values of the records relative to the base model, for columns without evidence.

The columns that decide on flags have means in the evidence. The means of the other columns are computed from the
records at the end of the run. A visit counts under the same conditions as for evidence: below `maximum_timestep`, and
with a base value if there is a base model. Evidence also leaves out the first visits of a run without moments, but here
they count. A sample that is no longer in the data of a rewound run has no mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.monitoring.options import WatchOptions
from memtrain.signals.readings import Readings


class RecordedValues:
    """Compares rows of the records with the base model.

    Args:
        readings: the signals of the run.
        profile: the profile of the base model, filled if the options ask for it.
        options: the options of the run.
        scored: the columns with evidence.
    """

    def __init__(self, readings: Readings, profile: ReferenceProfile, options: WatchOptions, scored: slice) -> None:
        self.readings, self.profile, self.options = readings, profile, options
        kept = frozenset(readings.columns[scored])
        self.columns = [name for name in readings.columns if name not in kept]

    @property
    def compares(self) -> bool:
        """Return whether values are relative to the base model."""
        return self.options.reference is not False

    @property
    def needed(self) -> Sequence[str]:
        """Return the needed columns of the records."""
        if not self.columns:
            return ()
        paired = self.options.reference == "paired"
        base = [f"base.{name}" for name in self.readings.columns] if paired else []
        return ("key", "step", "timestep", *self.readings.columns, *base)

    def __call__(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.float32]]:
        """Return the values of rows of the records by column; NaN if a visit does not count."""
        if not self.columns:
            return {}
        values, timesteps = self._matrix(table, self.readings.columns), table["timestep"].to_numpy()
        counted = timesteps < self.options.settings.maximum_timestep
        base = None
        if self.options.profiled:
            base = self.profile.known_values(table["key"], torch.from_numpy(timesteps.astype(np.float64)))
            counted &= ~base.isnan().all(dim=1).numpy()
        elif self.options.reference == "paired":
            base = self._matrix(table, [f"base.{name}" for name in self.readings.columns])
            # The base model is not compared with itself.
            counted &= table["step"].to_numpy() > 0
        compared = self.readings.compare(values, base).numpy()
        compared[~counted] = np.nan
        return {name: compared[:, self.readings.columns.index(name)] for name in self.columns}

    def _matrix(self, table: pa.Table, names: Sequence[str]) -> torch.Tensor:
        """Return values `(rows, columns)`; NaN for columns that the table lacks."""
        empty = np.full(len(table), np.nan, dtype=np.float32)
        there = set(table.column_names)
        found = [table[name].to_numpy().astype(np.float32) if name in there else empty for name in names]
        return torch.from_numpy(np.stack(found, axis=1))
