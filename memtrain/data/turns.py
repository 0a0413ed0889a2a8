"""Samples that take turns at some positions of a dataset."""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.functional.keyed_draws import hash_numbers


class Turns:
    """Rows that take turns at some positions. All are equally frequent in the long run, in a new order each time.

    Args:
        rows: the rows that take turns.
        positions: the positions of the dataset for these rows.
        seed: the seed of the orders.
    """

    def __init__(self, rows: Sequence[int], positions: Sequence[int], seed: int) -> None:
        self.rows, self.seed = list(rows), seed
        self.slots = {position: slot for slot, position in enumerate(positions)}
        self._orders: dict[int, list[int]] = {}

    def row(self, position: int, epoch: int) -> int:
        """Return the row whose turn it is."""
        time, place = divmod(epoch * len(self.slots) + self.slots[position], len(self.rows))
        if time not in self._orders:
            draws = hash_numbers(f"turns {self.seed} {time}", len(self.rows))
            order = [self.rows[place] for place in sorted(range(len(draws)), key=draws.__getitem__)]
            self._orders = {**dict(list(self._orders.items())[-3:]), time: order}
        return self._orders[time][place]
