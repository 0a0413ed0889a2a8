"""The numbers of samples by number of visits, with the median and the maximum, without reading any sample."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class VisitCounts:
    """An exact histogram of the samples with a visit.

    Cost: a few additions per visit. The search for the median begins at its last place.

    Attributes:
        seen: number of samples with a visit.
        most: largest number of visits of a sample so far.
    """

    def __init__(self) -> None:
        self.seen = self.most = 0
        self._having = [0, 0]
        # The median, and the number of seen samples with fewer visits.
        self._middle, self._below = 1, 0

    def move(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Move B samples from their numbers of visits `before` to their numbers `after`."""
        for had, has in zip(before, after, strict=True):
            if had == has:
                continue
            if had:
                self._count(had, -1)
            if has:
                self._count(has, 1)

    def _count(self, visits: int, change: int) -> None:
        if visits > self.most:
            self.most = visits
            self._having += [0] * (visits + 1 - len(self._having))
        self._having[visits] += change
        self.seen += change
        self._below += change if visits < self._middle else 0

    def median(self) -> int:
        """Return the lower median over seen samples, as torch defines it; 0 without samples."""
        if not self.seen:
            return 0
        place = (self.seen - 1) // 2
        while self._below > place:
            self._middle -= 1
            self._below -= self._having[self._middle]
        while self._below + self._having[self._middle] <= place:
            self._below += self._having[self._middle]
            self._middle += 1
        return self._middle

    @classmethod
    def of(cls, visits: Tensor) -> VisitCounts:
        """Make the histogram of visits `(n,)`, whole numbers."""
        found = cls()
        found._having = [0, *visits.clamp(min=0).bincount(minlength=2).tolist()[1:]]
        found.most, found.seen = len(found._having) - 1, sum(found._having)
        return found
