"""Pictures of the attention: which are written, what their axes say, and what stands in the table beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure
from PIL import Image

from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.attention import attention as plots
from memtrain.evaluation.stages.attention.attention import attention_plots, draw_entropy, draw_tokens, token_texts
from memtrain.evaluation.stages.attention.trace import AttentionTrace
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.prompts import PromptToScore


class Kept(Figure):
    """Keeps the figures that are drawn."""

    made: list[Figure] = []

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        Kept.made.append(self)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    Kept.made.clear()
    monkeypatch.setattr(plots, "Figure", Kept)
    return Kept.made


def test_files_for_memorized_prompts_and_others_in_turn(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    known = [True, True, False, None, False]
    prompts = [PromptToScore(text, truth) for text, truth in zip(["a", "$b$", "cc", "d e", "f"], known, strict=True)]
    stale = tmp_path / "attention" / "prompt-0099.png"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    sampling = Sampling(seeds=[0], steps=3, guidance_scale=4.0, progress=False)
    given = StageInput(pipeline=pipeline, prompts=prompts, output=tmp_path, sampling=sampling)
    results = attention_plots(given, most=3)
    paths = [tmp_path / "attention" / name for name in results["pictures"]]
    assert json.loads((tmp_path / "attention" / "attention.json").read_text()) == results
    assert [path.name for path in paths] == ["entropy.png", "prompt-0000.png", "prompt-0002.png", "prompt-0001.png"]
    assert sorted(tmp_path.glob("attention/*.png")) == sorted(paths)
    for path in paths:
        with Image.open(path) as image:
            image.verify()
    table = pq.read_table(tmp_path / "attention" / "attention.parquet").to_pylist()
    assert len(table) == 15 and [row["step"] for row in table[:4]] == [0, 1, 2, 0]
    assert all(0 < row["summary_entropy"] < row["entropy"] < 2.5 for row in table)


def test_rows_are_tokens_and_padding_is_one(tmp_path: Path, figures: list[Figure]) -> None:
    attention = torch.full((4, 6), 0.05)
    attention[:, 0] = 0.75
    draw_tokens(tmp_path / "a.png", attention, ["BOS", "$5", "EOS"], title="$5")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["BOS", r"\$5", "EOS", "padding (3)"]
    shown = axes.images[0].get_array()
    assert shown is not None and shown.shape == (4, 4)
    torch.testing.assert_close(torch.tensor(shown[:, 0].tolist()), torch.tensor([0.75, 0.05, 0.05, 0.15]))
    draw_tokens(tmp_path / "b.png", attention[:, :3], ["BOS", "a", "EOS"], title="without padding")
    assert len(figures[1].axes[0].get_yticklabels()) == 3


def test_curves_are_means_of_the_groups(tmp_path: Path, figures: list[Figure]) -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    trace = AttentionTrace(torch.zeros(3, 2, 5), values, values / 10, torch.tensor([2, 3, 4]))
    draw_entropy(tmp_path / "a.png", trace, [True, True, False])
    for axes, scale in zip(figures[0].axes, (1, 10), strict=True):
        curves = {line.get_label(): line.get_ydata() for line in axes.lines}
        assert set(curves) == {"memorized (2)", "other (1)"}
        torch.testing.assert_close(torch.tensor(curves["memorized (2)"]), torch.tensor([2.0, 3.0]) / scale)
        torch.testing.assert_close(torch.tensor(curves["other (1)"]), torch.tensor([10.0, 20.0]) / scale)


def test_texts_of_tokens(pipeline: StableDiffusionPipeline) -> None:
    assert token_texts(pipeline, "a cat", length=6) == ["BOS", "a", "c", "a", "t", "EOS"]
    assert token_texts(pipeline, "a very long prompt", length=12)[-2:] == ["p", "EOS"]
