"""Data sets of Hugging Face's `datasets`."""

import sys

import pytest
from PIL import Image

from memtrain.data.source import open_source
from memtrain.errors import ConfigurationError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("sets")
    columns = {
        "picture": [Image.new("RGB", (4, 6 + number), (10 * number, 0, 0)) for number in range(5)],
        "text": [f"thing {number}" for number in range(5)],
        "many": [[f"one {number}", f"two {number}"] for number in range(5)],
        "id": [100 + number for number in range(5)],
    }
    data = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    data.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(folder / "several")
    (folder / "parquet").mkdir()
    data.to_parquet(folder / "parquet" / "train.parquet")
    return folder


@pytest.mark.parametrize("name", ["one", "several", "parquet"])
def test_rows_are_samples(folder, name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    source = open_source(f"datasets:{folder / name}")
    assert [(one.key, one.caption) for one in source.samples][3] == ("00000003", "thing 3")
    assert source.load_image(3).size == (4, 9)
    assert source.load_image(3).getpixel((0, 0)) == (30, 0, 0)
    assert source.stored_in(3) is None


def test_columns_and_split_are_named_in_the_path(folder):
    source = open_source(f"datasets:{folder / 'several'}?split=test&caption=many&key=id&image=picture")
    assert [(one.key, one.caption, one.alternatives) for one in source.samples] == [
        ("100", "one 0", ("two 0",)),
        ("101", "one 1", ("two 1",)),
    ]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("caption=id", "is not a text: 100"),
        ("caption=none", "no column for caption: no 'none'"),
        ("split=other", r"cannot be opened .KeyError[\s\S]*\?split="),
        ("columns=text", r"has the unknown options \['columns'\]"),
        ("streaming=true", r"asks for streaming[\s\S]*StreamedImages"),
    ],
)
def test_what_cannot_be_read_is_refused(folder, options, found):
    with pytest.raises((DataError, ConfigurationError), match=found):
        open_source(f"datasets:{folder / 'several'}?{options}")


def test_without_the_package_there_is_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match="pip install datasets"):
        open_source("datasets:somebody/something")
