"""Streamed shards in a real training: continued as if it had not stopped, held out by weight, copies found."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from memtrain.data import shard_urls
from memtrain.errors import ConfigurationError
from memtrain.families.table import Families
from memtrain.records import read_steps
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import ROOT
from tests.integration.streamed_shards import AGAIN, COPIES, OTHERS, run, write_shards

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks",
    "ignore:The dirpath has changed",
    "ignore:Checkpoint directory .* exists and is not empty",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards") / "shards")


def rows(folder: Path) -> list[dict[str, object]]:
    return read_steps(folder / "records").to_pylist()


def require_equal(first: Path, second: Path) -> None:
    """Records, and the checkpoint of the last step."""
    assert repr(rows(first)) == repr(rows(second))
    assert (first / "flagged.csv").read_bytes() == (second / "flagged.csv").read_bytes()


def require_weights(ours: TextToImageModule, theirs: TextToImageModule) -> None:
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step={step}.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_the_middle_of_an_epoch_as_if_it_had_not_stopped(
    workers: int, shards: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    data = {"num_workers": workers}
    whole, _ = run(shards, pipeline_folder, tmp_path / "whole", stop=15, data=data)
    seen = Counter(str(row["key"]) for row in rows(tmp_path / "whole") if int(str(row["batch"])) < 12)
    assert len(seen) == 48 and set(seen.values()) == {1}, "an epoch is every sample once"
    resumed, _ = run(
        shards, pipeline_folder, tmp_path / "cut", stop=15, resume=checkpoint(tmp_path / "whole", 7), data=data
    )
    require_weights(resumed, whole)
    require_equal(tmp_path / "cut", tmp_path / "whole")
    for changed in ({"shuffle_buffer": 3}, {"seed": 5}):
        with pytest.raises(ConfigurationError, match="stream_order"):
            run(
                shards,
                pipeline_folder,
                tmp_path / "other",
                stop=15,
                resume=checkpoint(tmp_path / "whole", 7),
                data={**data, **changed},
            )


@pytest.mark.slow
def test_what_is_held_out_by_its_name_is_not_trained_on_and_copies_are_one_picture(
    shards: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    """In the first epoch copies come under their own names' word until they are known, then under their picture's."""
    _, watch = run(shards, pipeline_folder, tmp_path, stop=24)
    table = Families.read(tmp_path / "records" / "families.parquet")
    names = {f"p{OTHERS + number}-{copy}" for number in range(AGAIN) for copy in range(COPIES)}
    assert set(table.pictures) == names, "and no other picture is in a family"
    assert len(set(table.pictures.values())) == AGAIN
    assert all(name.split("-")[0] == key.split("-")[0] for key, name in table.pictures.items())
    held = watch.engine.running[1].heldout_keys
    found = rows(tmp_path)
    heads = {key: table.pictures.get(str(key), str(key)) for key in {row["key"] for row in found}}
    apart = {key for key, name in heads.items() if name in held}
    assert 0.1 < len({heads[key] for key in apart}) / len(set(heads.values())) < 0.6
    second = [row for row in found if int(str(row["batch"])) >= 12]
    assert {row["weight"] for row in second if row["key"] in apart} == {0.0}
    assert {row["weight"] for row in second if row["key"] not in apart} == {1.0}
    alone = [row for row in found if str(row["key"]) not in names]
    assert {row["weight"] for row in alone if row["key"] in apart} == {0.0}, "from the first visit on"


@pytest.mark.slow
def test_a_command_gives_shards_where_it_is_allowed_and_resuming_says_what_it_rests_on(
    shards: str,
    pipeline_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shard_urls, "_trusted", [])
    piped = f"pipe:cat {shards}"
    with pytest.raises(ConfigurationError, match="--trust pipe"):
        run(piped, pipeline_folder, tmp_path / "refused", stop=2)
    run(piped, pipeline_folder, tmp_path / "whole", stop=3, data={"allow_pipes": True})
    caplog.clear()
    again = checkpoint(tmp_path / "whole", 2)
    run(piped, pipeline_folder, tmp_path / "cut", stop=3, resume=again, data={"allow_pipes": True})
    assert "exact only if the commands of pipe: write the same" in caplog.text
    require_equal(tmp_path / "cut", tmp_path / "whole")


def start(*words: str) -> None:
    """Two processes to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.streamed_shards", *words],
            cwd=ROOT,
            env={
                **os.environ,
                **{"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


@pytest.mark.slow
def test_two_processes_have_as_many_batches_each_and_go_on_exactly(
    shards: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(shards, str(pipeline_folder), str(tmp_path))
    require_equal(cut, whole)
    first = Counter(str(row["key"]) for row in rows(whole) if int(str(row["batch"])) < 5)
    assert sum(first.values()) == 40 and set(first.values()) == {1}, "five batches of four on each of two processes"
    states = [torch.load(checkpoint(folder, 8), weights_only=True)["state_dict"] for folder in (whole, cut)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_several_processes_need_to_know_the_number_of_batches(shards: str) -> None:
    from memtrain.data.streamed import StreamedImages

    with pytest.raises(ConfigurationError, match=re.escape("set --data.init_args.batches_per_epoch")):
        StreamedImages(shards)._feed(0, 2)
    with pytest.raises(ConfigurationError, match=re.escape("6 shards for 4 processes of 2 worker(s)")):
        StreamedImages(shards, batches_per_epoch=3, num_workers=2)._feed(0, 4)
