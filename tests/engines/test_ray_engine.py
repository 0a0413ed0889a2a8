"""Pieces of work on a real Ray with two processes on this machine."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from memtrain import cli
from memtrain.engines.base import Engine, EngineOptions, opened
from memtrain.errors import ConfigurationError, ResourceError
from tests.families.picture_folder import with_copies


@pytest.fixture(scope="module")
def two() -> Iterator[Engine]:
    with opened(EngineOptions(engine="ray", engine_tasks=2)) as engine:
        yield engine


@pytest.mark.slow
def test_pieces_come_in_order_and_share_what_is_sent_once(two: Engine) -> None:
    shared = two.share(100)
    assert two.share(100) is shared
    assert list(two.map(operator.sub, iter(range(30)), shared=[shared])) == [100 - item for item in range(30)]


@pytest.mark.slow
def test_an_error_of_a_piece_is_raised_as_it_is(two: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        list(two.map(operator.truediv, [2, 1, 0, 3], shared=[6.0]))


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_is_named(two: Engine) -> None:
    with pytest.raises(ResourceError, match="engine_tasks"):
        list(two.map(os._exit, [1]))


@pytest.mark.slow
def test_a_scan_on_ray_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with_copies(tmp_path / "images", pictures=300)
    cli.train(["scan", "images", "--output", "here"])
    cli.train(["scan", "images", "--output", "there", "--engine", "ray", "--engine_tasks", "2"])
    for name in ("families.parquet", "exclude.csv"):
        assert Path("here", name).read_bytes() == Path("there", name).read_bytes()
    assert pq.read_table("there/families.parquet").num_rows > 300


def test_an_address_at_which_nobody_listens_is_refused_at_once() -> None:
    with (
        pytest.raises(ConfigurationError, match="Nothing answers"),
        opened(EngineOptions(engine="ray", engine_address="127.0.0.1:9")),
    ):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"memtrain\[ray\]"), opened(EngineOptions(engine="ray")):
        pass


def test_the_engine_shares_out_the_images_by_itself(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="only one of the two"):
        cli.train(["scan", str(tmp_path), "--engine", "ray", "--shard", "0/2"])
