"""What is read again later may be cut off, of another shape, or nothing at all: it is a value, or one clear refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.errors import MemtrainError
from memtrain.evaluation.report.section import results_of
from memtrain.evaluation.sampling.stored_images import read_object
from memtrain.evaluation.stages.base import write_report
from memtrain.evaluation.stages.compare.evaluated import Evaluated
from memtrain.evaluation.stages.detect.score_parts import ScoreParts, keep_earlier
from memtrain.evaluation.stages.measure.evidence_curves import read_evidence_curves
from memtrain.evaluation.stages.prompts import read_prompts
from memtrain.families.look_parts import ABOUT, LookParts, Looks
from memtrain.families.scan_result import read_scan
from memtrain.families.stored_arrays import create_arrays, open_arrays
from memtrain.families.table import Families, listed_keys
from memtrain.files.key_table import read_key_table
from memtrain.localization.calibration import calibrated_on
from memtrain.localization.found import Found
from memtrain.localization.results import load_masks, prompt_file, read_known, read_search, save_masks, write_found
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import FORMAT, Threshold
from memtrain.models.neuron_mask import NeuronMask
from tests.evaluation.report.made_results import write_full_results

FOUND = Found(prompt="a", similarity=0.9, kept_seeds=2, calls=3, images=12, seconds=0.5)
THRESHOLD = {"format": FORMAT, "value": 0.5, "mean": 0.4, "std": 0.1, "count": 9, "model": "m", "source": "s"}
FAMILIES = {"key": ["a", "b"], "picture_family": ["a", "a"], "caption_family": ["a", "b"], "similarity": [1.0, 0.9]}
SCAN: dict[str, Any] = {
    "broken": {},
    "descriptor": "d",
    "threshold": 0.9,
    "false_merge_rate": 0.1,
    "threshold_rests_on": "x",
    "seconds": {"looking": 1.0, "finding": 1.0},
}


@dataclass(frozen=True)
class Reader:
    """A reader, the file it is tried on, and what makes a whole folder."""

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def _json(name: str, content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _parquet(name: str, columns: Mapping[str, Any]) -> Callable[[Path], object]:
    return lambda folder: pq.write_table(pa.table(dict(columns)), folder / name)


def _scan(folder: Path) -> None:
    _json("scan.json", SCAN)(folder)
    _parquet("families.parquet", FAMILIES)(folder)


def _statistics(folder: Path) -> None:
    ActivationStatistics(mean={"a": torch.ones(3)}, std={"a": torch.ones(3)}, count=5).save(folder / "s.safetensors")


def _arrays(folder: Path) -> None:
    create_arrays(folder / "a.safetensors", {"x": ("float32", (4, 2)), "y": ("uint8", (3,))})


def _keys(folder: Path) -> None:
    (folder / "k.csv").write_text('key,caption\na.png,"one, two"\n\'=b.png,\n')


def _parts(folder: Path) -> ScoreParts:
    parts = ScoreParts(folder, {}, detectors=["norm"])
    parts.folder = folder / "1"
    return parts


def _scores(folder: Path) -> None:
    _parts(folder).append([{"row": 0, "norm": 0.5, "seconds": 0.1}], shard="0/1")


def _looks(folder: Path) -> None:
    parts = LookParts(folder, {}, samples=2)
    shapes = {"rows": ("int64", ()), "hashes": ("uint8", (32,)), "descriptors": ("float32", (4,))}
    shapes |= {"thumbnails": ("uint8", (2, 2, 3)), "sizes": ("int32", (2,))}
    arrays = {name: np.zeros((2, *shape), kind) for name, (kind, shape) in shapes.items()}
    parts.append((0, 1), Looks(**arrays, broken={}))
    parts.merged()
    (parts.folder / ABOUT).rename(folder / "looks.json")


def _looks_again(folder: Path) -> object:
    parts = LookParts(folder, {}, samples=2)
    (folder / "looks.json").rename(parts.folder / ABOUT)
    return parts.merged()


CURVES = {"key": ["a", "a"], "step": [1, 2], "score": [0.5, 0.6]}
FOUND_FILE = str(prompt_file(Path(), "a"))
READERS = {
    "threshold": Reader(
        "t.json", _json("t.json", {**THRESHOLD, "settings": {}, "window": {}}), lambda at: Threshold.load(at / "t.json")
    ),
    "calibrated on": Reader("calibrated_on.json", _json("calibrated_on.json", ["a", "b"]), calibrated_on),
    "search": Reader("search.json", _json("search.json", {"settings": {}}), read_search),
    "found": Reader(FOUND_FILE, lambda at: write_found(at, FOUND), lambda at: read_known(at, ["a"])),
    "masks": Reader(
        "m.safetensors",
        lambda at: save_masks({"a": NeuronMask({"x": [1]}, factor=0.5)}, at / "m.safetensors"),
        lambda at: load_masks(at / "m.safetensors"),
    ),
    "statistics": Reader("s.safetensors", _statistics, lambda at: ActivationStatistics.load(at / "s.safetensors")),
    "arrays": Reader("a.safetensors", _arrays, lambda at: open_arrays(at / "a.safetensors")),
    "families": Reader(
        "families.parquet", _parquet("families.parquet", FAMILIES), lambda at: Families.read(at / "families.parquet")
    ),
    "listed keys": Reader(
        "families.parquet", _parquet("families.parquet", FAMILIES), lambda at: listed_keys(at / "families.parquet")
    ),
    "scan": Reader("scan.json", _scan, read_scan),
    "curves": Reader("evidence_curves.parquet", _parquet("evidence_curves.parquet", CURVES), read_evidence_curves),
    "results": Reader(
        "results.json", _json("results.json", {"created": "x"}), lambda at: results_of(at, "results.json")
    ),
    "compared": Reader("results.json", write_full_results, lambda at: Evaluated.read(at, name="a")),
    "compared samples": Reader("samples.parquet", write_full_results, lambda at: Evaluated.read(at, name="a")),
    "stored images": Reader("i.json", _json("i.json", {"block": 3}), lambda at: read_object(at / "i.json")),
    "prompts": Reader(
        "p.parquet",
        _parquet("p.parquet", {"text": ["a", None], "memorized": [1.0, 0.0]}),
        lambda at: read_prompts(str(at / "p.parquet")),
    ),
    "listed prompts": Reader(
        "p.json",
        _json("p.json", [{"text": "a", "seed": 1}, {"text": "b"}]),
        lambda at: read_prompts(str(at / "p.json")),
    ),
    "keys": Reader("k.csv", _keys, lambda at: read_key_table(at / "k.csv")),
    "scores": Reader("1/part-0-of-1-row-00000000.parquet", _scores, lambda at: _parts(at).done()),
    "looks": Reader("looks.json", _looks, _looks_again),
    "detection": Reader(
        "detection.json",
        _json("detection.json", {"key": "a" * 16}),
        lambda at: keep_earlier(at, key="b", names=("detection.json",)),
    ),
}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name: str, tmp_path: Path) -> None:
    READERS[name].make(tmp_path)
    READERS[name].read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_much_damage_is_a_value_or_a_refusal(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _try(READERS[name], tmp_path_factory.mktemp("spoilt"), data)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_value_or_a_refusal(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _try(READERS[name], tmp_path_factory.mktemp("spoilt"), data)


def _try(reader: Reader, folder: Path, data: st.DataObject) -> None:
    reader.make(folder)
    path = folder / reader.file
    path.write_bytes(data.draw(_damaged(path.read_bytes(), as_json=path.suffix == ".json")))
    with suppress(MemtrainError):
        reader.read(folder)


def _damaged(content: bytes, *, as_json: bool) -> st.SearchStrategy[bytes]:
    """Cut off, one byte changed, another value, or one part of it another value."""
    place = st.integers(0, len(content) - 1)
    found = place.map(lambda end: content[:end]) | st.binary(max_size=20)
    found |= st.tuples(place, st.integers(0, 255)).map(
        lambda change: content[: change[0]] + bytes([change[1]]) + content[change[0] + 1 :]
    )
    if as_json:
        found |= values.map(lambda value: json.dumps(value).encode())
        whole = json.loads(content)
        if isinstance(whole, dict):
            part = st.tuples(st.sampled_from(sorted(whole)), values)
            found |= part.map(lambda change: json.dumps({**whole, change[0]: change[1]}).encode())
    return found


def test_a_file_cut_short_is_not_filled_up_with_zeros(tmp_path: Path) -> None:
    _arrays(tmp_path)
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    size = path.stat().st_size
    with pytest.raises(MemtrainError, match="cut short"):
        open_arrays(path, mode="r+")
    assert path.stat().st_size == size


@pytest.mark.parametrize("content", ['{"key": "a', '{"schema_version": 1}'])
def test_one_spoilt_file_keeps_nothing_else_from_the_report(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_full_results(tmp_path)
    (tmp_path / "detection.json").write_text(content)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Are training images reproduced?" in page and "Results that cannot be shown" in page
    said = capsys.readouterr().out
    assert said.startswith("Not in the report: ") and "detect" in said and "Remedy: run " in said


def test_nothing_but_spoilt_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "detection.json").write_text('{"key": "a')
    with pytest.raises(MemtrainError, match=r"detection\.json is not JSON"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
