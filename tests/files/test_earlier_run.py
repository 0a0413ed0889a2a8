"""What a branch takes over from the run that its checkpoint lies in."""

import shutil

import pytest

from memtrain.files.earlier_run import run_of, taken_over


@pytest.fixture
def run(tmp_path):
    for part in ("records/steps", "profiles/abc", "checkpoints"):
        (tmp_path / "run" / part).mkdir(parents=True)
    (tmp_path / "run" / "profiles" / "abc" / "part.parquet").write_text("values")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_text("")
    return tmp_path / "run"


def test_the_run_is_the_folder_above_the_checkpoint_that_holds_its_part(run, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert run_of(checkpoint, "records/steps") == run
    assert run_of(checkpoint, "families") is None
    assert run_of(None, "records/steps") is None
    assert run_of(shutil.copy(checkpoint, tmp_path / "taken.ckpt"), "records/steps") is None


def test_a_part_is_copied_once_and_never_over_another(run, tmp_path):
    checkpoint, into = run / "checkpoints" / "last.ckpt", tmp_path / "branch" / "profiles" / "abc"
    assert taken_over(checkpoint, "profiles/abc", into=into)
    assert (into / "part.parquet").read_text() == "values"
    (into / "part.parquet").write_text("own")
    assert not taken_over(checkpoint, "profiles/abc", into=into)
    assert (into / "part.parquet").read_text() == "own"
    assert not taken_over(checkpoint, "profiles/other", into=tmp_path / "x")
    assert not taken_over(checkpoint, "profiles/abc", into=run / "profiles" / "abc")
    assert [path.name for path in (tmp_path / "branch" / "profiles").iterdir()] == ["abc"]
