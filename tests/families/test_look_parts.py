"""The looks of a scan on disk: in parts, by shards, put together once."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from memtrain.errors import RecordError
from memtrain.families.look_parts import COLUMNS, FEWEST, LookParts, Looks


def looks(first: int, last: int, *, broken: tuple[int, ...] = ()) -> Looks:
    rows = np.array([row for row in range(first, last + 1) if row not in broken], np.int64)
    return Looks(
        rows=rows,
        hashes=np.repeat(rows[:, None].astype(np.uint8), 32, 1),
        descriptors=np.stack([rows, -rows], 1).astype(np.float32) if len(rows) else np.zeros((0, 0), np.float32),
        thumbnails=np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 4, 4, 3)),
        sizes=np.stack([rows, rows + 1], 1).astype(np.int32),
        broken={row: f"broken {row}" for row in broken},
        seconds=0.5,
    )


def parts(folder: Path, samples: int = 3 * FEWEST - 1, **identity: object) -> LookParts:
    return LookParts(folder, identity, samples=samples)


def test_ranges_cover_every_sample_once(tmp_path: Path) -> None:
    for samples in (1, 31, 32, 33, 2048, 2049, 100_000, 1_000_003):
        ranges = parts(tmp_path, samples).ranges
        assert ranges[0][0] == 0
        assert ranges[-1][1] == samples - 1
        assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(ranges))
        assert all(first % FEWEST == 0 for first, _ in ranges)
    assert len(parts(tmp_path, 100_000).ranges) == 64
    assert len(parts(tmp_path, 1_000_000).ranges) == 245


def test_parts_are_put_together_in_order_and_then_gone(tmp_path: Path) -> None:
    stored = parts(tmp_path)
    assert stored.missing() == stored.ranges
    for found in reversed(stored.ranges):
        assert not stored.has(found)
        stored.append(found, looks(*found, broken=(40,) if found[0] == 32 else ()))
        assert stored.has(found)
    for _ in range(2):  # from parts, and from the one file
        merged = parts(tmp_path).merged()
        expected = looks(0, 3 * FEWEST - 2, broken=(40,))
        for name in COLUMNS:
            assert (getattr(merged, name) == getattr(expected, name)).all(), name
        assert merged.broken == {40: "broken 40"}
        assert merged.seconds == 1.5
        assert stored.missing() == []
        assert not list(stored.folder.glob("part-*"))
    assert not list(stored.folder.glob(".*"))


def test_a_part_in_which_nothing_could_be_read(tmp_path: Path) -> None:
    stored = parts(tmp_path, 2 * FEWEST)
    first, second = stored.ranges
    stored.append(first, looks(*first, broken=tuple(range(FEWEST))))
    stored.append(second, looks(*second))
    merged = stored.merged()
    assert merged.rows.tolist() == list(range(FEWEST, 2 * FEWEST))
    assert merged.descriptors.shape == (FEWEST, 2)
    assert len(merged.broken) == FEWEST


def test_shards_share_the_parts(tmp_path: Path) -> None:
    stored = parts(tmp_path, 10 * FEWEST)
    shares = [stored.missing((index, 3)) for index in range(3)]
    assert sorted(found for share in shares for found in share) == stored.ranges
    assert max(map(len, shares)) - min(map(len, shares)) == 1


def test_missing_parts_are_named(tmp_path: Path) -> None:
    stored = parts(tmp_path)
    stored.append(stored.ranges[0], looks(*stored.ranges[0]))
    with pytest.raises(RecordError, match=r"2 of 3 parts .* samples 32 to 63"):
        stored.merged()


def test_other_data_have_looks_of_their_own(tmp_path: Path) -> None:
    one, other = parts(tmp_path, content="a"), parts(tmp_path, content="b")
    one.append(one.ranges[0], looks(*one.ranges[0]))
    assert len(other.missing()) == 3
    assert len(parts(tmp_path, content="a").missing()) == 2


def test_joined_stretches() -> None:
    joined = Looks.joined([looks(0, 1, broken=(0, 1)), looks(2, 3), looks(4, 5, broken=(5,))])
    assert joined.rows.tolist() == [2, 3, 4]
    assert set(joined.broken) == {0, 1, 5}
    assert joined.descriptors.shape == (3, 2)
    assert len(Looks.joined([looks(0, 0, broken=(0,))])) == 0
