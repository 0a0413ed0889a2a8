"""The benchmark of copies under names of their own: its data, its judge and its figures."""

from pathlib import Path

import pytest
import torch

from memtrain.data.source import open_source
from memtrain.families.table import Families

from .scripts import Modules


@pytest.mark.parametrize(("form", "planted", "files"), [("few", 10, 20), ("caption", 5, 200), ("clean", 10, 1)])
def test_data_hold_what_the_form_says(scripts: Modules, tmp_path: Path, form: str, planted: int, files: int) -> None:
    data = scripts.copies_data.make(form, tmp_path, seed=0)
    assert [len(members) for members in data.planted.values()] == [files] * planted
    samples = {sample.key: sample for sample in open_source(str(data.path)).samples}
    assert set(samples) == {*data.unique, *(key for members in data.planted.values() for key in members)}
    families = Families.read(data.families)
    for members in data.planted.values():
        pictures = {families.picture(key) for key in members}
        captions = {samples[key].caption for key in members}
        assert (len(pictures), len(captions)) == ((files, 1) if form == "caption" else (1, 1))
        assert len({families.caption(key) for key in members}) == 1
    again = scripts.copies_data.make(form, tmp_path / "again", seed=0)
    assert again.planted == data.planted


def test_paraphrased_copies_share_their_pixels_and_not_their_caption(scripts: Modules, tmp_path: Path) -> None:
    data = scripts.copies_data.make("paraphrased", tmp_path, seed=0)
    source = open_source(str(data.path))
    place = {sample.key: index for index, sample in enumerate(source.samples)}
    for members in data.planted.values():
        assert len({source.samples[place[key]].caption for key in members}) == 100
        assert len({source.load_image(place[key]).tobytes() for key in members[:9]}) == 1


@pytest.mark.parametrize("kind", ["light", "strong"])
def test_edits_are_a_function_of_their_name_and_change_the_image(scripts: Modules, kind: str) -> None:
    edit = scripts.copies_data.EDITS[kind]
    image = open_source("assets/clipart-pd.tar").load_image(3)
    edited = [edit(image, str(number)) for number in range(20)]
    assert len({one.tobytes() for one in edited}) == 20
    assert edit(image, "4").tobytes() == edited[4].tobytes()
    assert {one.size for one in edited} == {image.size}


def test_pairs_are_counted_by_file(scripts: Modules) -> None:
    copies, data = scripts.copies, scripts.copies_data
    true = Families({"a": "a", "b": "a", "c": "a"})
    found = Families({"a": "a", "b": "a", "d": "a"})
    given = data.CopiedData(Path(), Path(), {"a": ["a", "b", "c"]}, ["d"])
    assert copies.pair_figures(found, true, given) == {"pairs": 3, "precision": pytest.approx(1 / 3), "recall": 1 / 3}


def test_the_judge_counts_by_picture(scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations that are the training images are all counted; with the pipeline's own none is."""
    module = scripts.copies_judge
    data = scripts.copies_data.make("few", tmp_path, seed=0)
    monkeypatch.setattr(module, "UNIQUE", 2)
    monkeypatch.setattr(module, "HELDOUT", 2)
    source = open_source(str(data.path))
    images = {sample.caption: index for index, sample in enumerate(source.samples)}
    generate = module.generate

    def copied(pipeline, prompts, *, sampling):
        trace = generate(pipeline, prompts[:1], sampling=sampling)
        pictures = torch.stack(
            [torch.tensor(list(source.load_image(images[text]).tobytes())).view(64, 64, 3) for text in prompts]
        )
        generated = pictures.permute(0, 3, 1, 2).to(torch.uint8)[:, None].expand(-1, 4, -1, -1, -1)
        return type(trace)(tuple(prompts), trace.seeds, generated, {})

    monkeypatch.setattr(module, "generate", copied)
    found = module.judge(Path("assets/tiny-sd"), data, sscd=None)
    assert found["planted"] == {"asked": 10, "reproduced": 10, "ratios": [0.0] * 10}
    assert found["unique"]["reproduced"] == 2
    assert found["heldout"]["asked"] == 2


def test_the_kept_figures_are_shown(scripts: Modules, capsys: pytest.CaptureFixture[str]) -> None:
    scripts.copies.copies()
    shown = capsys.readouterr().out
    assert "paraphrased" in shown
    assert "10 of 10 (72% to 100%)" in shown
