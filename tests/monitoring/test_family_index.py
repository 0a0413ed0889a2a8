"""Where a run's families come from, what they change in it, and what is said of captions that say nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import DDPMScheduler, StableDiffusionPipeline

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError, RecordError
from memtrain.evidence.levels import Levels
from memtrain.families.table import Families
from memtrain.guard import Guard
from memtrain.monitoring.family_index import Apart, given_index, index_name, picture_count, report_common
from memtrain.monitoring.host import Host
from memtrain.monitoring.measurement import _first_of_each_picture
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_table
from tests.callbacks.test_monitor import Foreign, ForeignData, fit
from tests.guard_loops import batch, denoiser


def named(*keys: str) -> Any:
    """A data set that knows its samples."""
    samples = [SimpleNamespace(key=key, caption=f"a {key}") for key in keys]

    class Named(list):  # type: ignore[type-arg]
        pass

    dataset = Named(samples)
    dataset.samples = samples
    return dataset


def test_an_index_is_given_as_one_or_by_its_table(tmp_path: Path) -> None:
    families = Families({"a": "a", "b": "a"}, {"a": "a", "c": "a"})
    families.write(tmp_path / "families.parquet", "abc")
    assert given_index(None) is None
    assert given_index(families) is families
    read = given_index(tmp_path / "families.parquet")
    assert read is not None
    assert [read.picture(key) for key in "abc"] == ["a", "a", "c"]
    assert index_name(read) == index_name(families) is not None
    assert index_name(None) is index_name(Families()) is None
    assert index_name(Families({"a": "a", "c": "a"})) != index_name(families)
    with pytest.raises(RecordError, match="of a scan"):
        given_index(str(tmp_path / "missing.parquet"))
    with pytest.raises(ConfigurationError, match="families is a int"):
        given_index(3)  # type: ignore[arg-type]


def test_pictures_are_counted_without_what_is_held_out() -> None:
    data = SimpleNamespace(
        train_dataset=named("a", "b", "c", "d"), heldout_dataset=named("e"), families=Families({"a": "a", "b": "a"})
    )
    host = Host(None, data=data)
    apart = Apart(host, {"d"})
    assert [key in apart for key in "ade"] == [False, True, True]
    assert picture_count(host, apart) == 2
    assert picture_count(Host(None, data=None), apart) is None
    host.families = Families()
    assert picture_count(host, apart) == 3, "what is set goes before what the data know"


def test_captions_that_are_shared_by_too_many_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    keys = [f"k{index}" for index in range(20)]
    shared = dict.fromkeys(keys[:5], "k0") | {"k8": "k8", "k9": "k8"}
    host = Host(None, data=SimpleNamespace(train_dataset=named(*keys), families=Families({}, shared)))
    levels = Levels(host.families, columns=1, window=12)
    levels.pictures = 20
    with caplog.at_level(logging.WARNING):
        report_common(host, levels)
    assert len(caplog.records) == 1
    assert "1 captions are shared by more than 10 % of the pictures" in caplog.text
    assert "'a k0'" in caplog.text


def test_one_file_of_each_held_out_picture_is_measured() -> None:
    dataset = named("a", "b", "c", "d")
    assert list(_first_of_each_picture(dataset, Families({"b": "b", "c": "b"}))) == [0, 1, 3]
    assert list(_first_of_each_picture(dataset, None)) == [0, 1, 2, 3]
    assert list(_first_of_each_picture([1, 2], Families({"b": "b", "c": "b"}))) == [0, 1]


def test_a_run_counts_pictures_from_its_batches_to_its_records(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ForeignData()
    data.families = Families({"a": "a", "c": "a"}, {"b": "b", "d": "b"})
    monitor = MemorizationMonitor(reference=False, minimum_visits=2, settings=WatchSettings(calibrate_every=1))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(Host, "log", lambda self, values, *, batch_size: logged.update(values))
    monkeypatch.setattr("memtrain.callbacks.lightning_host.LightningHost.log", Host.log)
    fit(Foreign(pipeline.unet), tmp_path, [monitor, SampleSkipping()], data=data, max_epochs=2)
    assert set(monitor.calibration.samples.row) == {"a", "b", "d"}
    assert monitor.calibration.counted_visits(["a", "c"])[0] == monitor.calibration.counted_visits(["c"])[0]
    assert float(logged["memorization/share"]) == float(logged["memorization/pictures_flagged"]) == 0.0
    for name, keys in (("samples", "abcde"), ("evidence", "abcd")):
        rows = {row["key"]: row for row in read_table(tmp_path / "records", name).to_pylist()}
        assert [rows[key]["picture_family"] for key in keys] == list("abad" + "e")[: len(keys)]
        assert [rows[key]["caption_family"] for key in keys] == list("abcb" + "e")[: len(keys)]
    assert json.loads((tmp_path / "records" / "calibration.json").read_text())["pictures"] == 3


def test_a_guard_holds_out_whole_pictures_and_measures_one_file_of_each(tmp_path: Path) -> None:
    pictures = {str(number): str(number // 4 * 4) for number in range(24)}
    Families(pictures).write(tmp_path / "families.parquet", pictures)
    options = {"heldout_share": 0.5, "calibrate_every": 1, "families": tmp_path / "families.parquet"}
    with Guard(denoiser(), DDPMScheduler(), folder=tmp_path, **options) as guard:
        for step in range(6):
            data = batch(range(24), step, DDPMScheduler())
            prediction = guard._denoiser(data["noisy"], data["timesteps"], data["text"]).sample
            guard.loss(prediction, data["noise"], keys=data["key"]).backward()
        latents = guard.engine.flagging.latents  # type: ignore[union-attr]
        held = {key for key in pictures if key in latents.chosen}
        assert {pictures[key] for key in held} >= set(latents.kept) != set()
        assert len(held) == 4 * len({pictures[key] for key in held}) < 24
        assert set(guard.calibration.heldout.row) <= {pictures[key] for key in held}  # type: ignore[union-attr]
        assert set(guard.calibration.samples.row) <= set(pictures.values())
