"""Listings of shards: kept, read again where the shard changed, and the same from processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from memtrain.data import shard_listing
from memtrain.data.shard_listing import Listing, listings, read_listing
from tests.conftest import encoded_image


@pytest.fixture
def shards(write_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(shard_listing, "WORTH", 1)
    return [
        write_shard(
            {f"s{shard}-{number}.{kind}": content for number in range(3) for kind, content in files(number).items()},
            name=f"{shard}.tar",
        )
        for shard in range(3)
    ]


def files(number: int) -> dict[str, bytes]:
    return {"png": encoded_image(number), "txt": f"picture {number}".encode()}


def content(found: Listing) -> list[tuple[str, str, int, int]]:
    rows = zip(found.samples, found.offsets, found.sizes, strict=True)
    return [(sample.key, sample.caption, int(offset), int(size)) for sample, offset, size in rows]


def test_a_kept_listing_is_that_of_the_shard(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [content(read_listing(shard)) for shard in shards]
    assert [content(one) for one in listings(shards, kept_in=tmp_path / "kept")] == expected
    monkeypatch.setattr(shard_listing, "read_listing", lambda *given, **named: pytest.fail("it is kept"))
    assert [content(one) for one in listings(shards, kept_in=tmp_path / "kept")] == expected


def test_a_shard_that_changed_is_read_again(
    shards: list[Path], write_shard: Callable[..., Path], tmp_path: Path
) -> None:
    list(listings(shards, kept_in=tmp_path / "kept"))
    write_shard({"new.png": encoded_image(5), "new.txt": b"another"}, name="1.tar")
    os.utime(shards[1], ns=(0, 10**18))
    found = [content(one) for one in listings(shards, kept_in=tmp_path / "kept")]
    assert [key for key, *_ in found[1]] == ["new"] and len(found[0]) == len(found[2]) == 3


@pytest.mark.slow
def test_processes_of_their_own_list_the_same(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [content(read_listing(shard)) for shard in shards]
    shards[1].write_bytes(shards[1].read_bytes()[:700])  # what fails there is told here
    monkeypatch.setattr(shard_listing, "MANY", 2)
    asked: list[int] = []
    together = shard_listing._read_together
    monkeypatch.setattr(
        shard_listing,
        "_read_together",
        lambda some, *given, **named: (asked.append(len(some)), together(some, *given, **named)),
    )
    found = list(listings(shards, skip=True, kept_in=tmp_path / "kept"))
    assert asked == [3]
    assert [content(found[at]) for at in (0, 2)] == [expected[0], expected[2]]
    assert [one.shard for one in found[1].broken] == [str(shards[1])] * len(found[1].broken) and found[1].broken
