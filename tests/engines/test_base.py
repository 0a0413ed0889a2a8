"""The engine of this process, and what its options refuse."""

from __future__ import annotations

import operator

import numpy as np
import pytest

from memtrain.engines.base import EngineOptions, LocalEngine, opened
from memtrain.errors import ConfigurationError
from memtrain.families.agreement import compare
from memtrain.families.looks import thumbnail
from tests.families.picture_folder import picture


class Counting(LocalEngine):
    """Counts the pieces."""

    pieces = 0

    def map(self, function, items, *, shared=(), gpu=False):
        for one in super().map(function, items, shared=shared, gpu=gpu):
            self.pieces += 1
            yield one


def test_pieces_come_in_order() -> None:
    with opened(EngineOptions()) as engine:
        assert list(engine.map(operator.sub, iter([1, 2, 3]), shared=[engine.share(10)])) == [9, 8, 7]


@pytest.mark.parametrize(
    "given", [{"engine_tasks": 2}, {"engine_address": "auto"}, {"engine": "ray", "engine_tasks": 0}]
)
def test_what_means_nothing_is_refused(given: dict) -> None:
    with pytest.raises(ConfigurationError, match="engine_tasks"):
        EngineOptions(**given)


def test_pictures_are_compared_alike_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [thumbnail(picture(number)) for number in range(12)]
    thumbnails = np.stack([*pictures, *pictures[:4]])
    pairs = np.array([(one, other) for one in range(16) for other in range(one)])
    whole = compare(thumbnails, thumbnails, pairs)
    monkeypatch.setattr("memtrain.families.agreement.PAIRS", 8)
    monkeypatch.setattr("memtrain.families.agreement.PIECE", 2)
    engine = Counting()
    found = compare(thumbnails, thumbnails, pairs, engine=engine)
    assert engine.pieces == -(-len(pairs) // 16)
    np.testing.assert_allclose(found, whole, rtol=1e-5)
    assert (whole[[one - other == 12 for one, other in pairs]] > 3).all()
    assert compare(thumbnails, thumbnails, pairs[:0]).shape == (0,)
