"""The benchmark of few pictures: its data and its runs."""

from __future__ import annotations

from pathlib import Path

from memtrain.data.source import open_source

from .scripts import Modules


def test_pictures_are_written_with_their_captions(scripts: Modules, tmp_path: Path) -> None:
    source = open_source("assets/clipart-pd.tar")
    own, others = scripts.few.chosen(source, 3)
    assert len(own) == len(others) == 12 and not set(own) & set(others)
    again = open_source(str(scripts.few.write_pictures(source, own, tmp_path)))
    assert [sample.caption for sample in again.samples] == [source.samples[index].caption for index in own]
    assert again.load_image(4).tobytes() == source.load_image(own[4]).tobytes()


def test_runs_differ_in_what_they_are_compared_by(scripts: Modules, tmp_path: Path) -> None:
    made = {run: scripts.few.configuration(run, data=tmp_path, seed=1) for run in scripts.few.RUNS}
    shares = {
        run: next(one for one in content["trainer"]["callbacks"] if one["class_path"] == scripts.few.STOP)
        for run, content in made.items()
    }
    assert shares["to the end"]["init_args"]["share"] == 1 > shares["stopped"]["init_args"]["share"]
    rates = {run: content["model"]["init_args"]["learning_rate"] for run, content in made.items()}
    assert rates["too brief"] == rates["stopped"] / 10 and rates["to the end"] == rates["stopped"]
