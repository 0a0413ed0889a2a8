"""A detection with null prompts: what is written, said and shown, and that it is scored once."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.detect.section import sections
from memtrain.evaluation.stages.detect.stage import Detect
from memtrain.evaluation.stages.prompts import PromptToScore

HOSTILE = "<script>alert(1)</script> & [red] of a cat"
TEXTS = ["a cat", "the dogs of ab", HOSTILE, "a cat", "bb cc dd in a cab"]
DETECTORS = [GuidanceNorm(), MemAttn("D")]


def given(pipeline: StableDiffusionPipeline, folder: Path, texts: list[str] = TEXTS) -> StageInput:
    sampling = Sampling(seeds=[0], steps=2, batch_size=16, progress=False)
    return StageInput(
        pipeline=pipeline, prompts=[PromptToScore(text) for text in texts], output=folder, sampling=sampling
    )


@pytest.fixture(scope="module")
def detected(
    pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("null")
    return folder, Detect(detectors=DETECTORS, null=29)(given(pipeline, folder))


def test_every_prompt_is_there_once_with_its_p_values(detected: tuple[Path, dict[str, Any]]) -> None:
    folder, results = detected
    table = pq.read_table(folder / "prompts.parquet")
    assert table["prompt"].to_pylist() == list(dict.fromkeys(TEXTS))
    assert table["count"].to_pylist() == [2, 1, 1, 1]
    assert (results["prompts"], results["repeated_prompts"]) == (4, 1)
    for column in ("p_value", "q_value", "holm", "p_value.guidance_norm_1", "q_value.memattn_d"):
        assert all(1 / 30 <= value <= 1 for value in table[column].to_pylist()), column
    null = pq.read_table(folder / "null_prompts.parquet")
    assert len(set(null["prompt"].to_pylist()) - set(TEXTS)) == 29
    assert results["null"]["smallest_p_value"] == pytest.approx(1 / 30)
    assert set(results["null"]["detectors"]) == {"guidance_norm_1", "memattn_d"}


def test_a_second_call_scores_nothing(detected: tuple[Path, dict[str, Any]], pipeline: StableDiffusionPipeline) -> None:
    folder, results = detected
    calls: list[int] = []
    handle = pipeline.unet.register_forward_hook(lambda *call: calls.append(1))
    try:
        again = Detect(detectors=DETECTORS, null=29)(given(pipeline, folder))
        assert not calls
    finally:
        handle.remove()
    assert again["null"] == results["null"]


def test_the_page_says_it_and_shows_prompts_as_text(detected: tuple[Path, dict[str, Any]]) -> None:
    (section,) = sections(detected[0])
    assert section.verdict is not None
    assert "of 4 prompts score" in section.verdict["text"] or "1 of 4 prompts scores" in section.verdict["text"]
    assert section.cannot_say
    assert "<script>" not in section.body
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; [red]" in section.body
    assert section.body.index("The 4 most suspicious prompts, by p-value") < section.body.index(
        "Results of each detector"
    )


def test_by_itself_it_makes_as_many_as_are_of_use_for_detectors_of_one_call(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    null = Detect(detectors=DETECTORS).null_of(given(pipeline, tmp_path), DETECTORS)
    assert null is not None
    assert len(null.texts) == 199
    assert [detector.name for detector in null.detectors] == ["guidance_norm_1"]
    known = StageInput(
        pipeline=pipeline,
        output=tmp_path,
        prompts=[PromptToScore("a", memorized=True), PromptToScore("b", memorized=False)],
    )
    assert Detect().null_of(known, DETECTORS) is None
    assert Detect(null="none").null_of(given(pipeline, tmp_path), DETECTORS) is None
    # What is not written in Latin letters cannot take words from the stock: said, and detection goes on.
    assert Detect().null_of(given(pipeline, tmp_path, ["一只猫"]), DETECTORS) is None


def test_own_null_prompts_from_a_file(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    file = tmp_path / "null.txt"
    file.write_text("\n".join(["a cat", *(f"a {letter}" for letter in "bcdefghijklmnopqrstu")]))
    stage = Detect(detectors=[GuidanceNorm()], null=str(file))
    stage.check()
    stage.check_prompts([PromptToScore("a cat")])
    found = stage(given(pipeline, tmp_path / "out", ["a cat"]))["null"]
    assert (found["kind"], found["prompts"]) == ("own", 20)
    file.write_text("a cat\nb\n")
    with pytest.raises(ConfigurationError, match="holds 1 prompts that are not scored"):
        stage.check_prompts([PromptToScore("a cat")])


@pytest.mark.parametrize(("null", "said"), [(5, "could be as small as 0.05"), ("words", "neither a number nor a file")])
def test_a_null_that_is_none_is_refused(null: int | str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Detect(null=null).check()


def test_what_is_said_of_a_few_and_of_one(
    detected: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    from memtrain.evaluation.stages.detect.against_null import sentences
    from memtrain.evaluation.stages.detect.screen import print_detection

    folder, results = detected
    counts = {"q_below_level": 3, "holm_below_level": 1}
    changed = {
        **results,
        "prompts": 20,
        "null": {**results["null"], "combined": {**results["null"]["combined"], **counts}},
    }
    assert sentences(changed)[0] == (
        "3 of 20 prompts score higher than prompts that the model cannot have seen (q < 0.05)."
    )
    assert (
        "does not score"
        in sentences(
            {
                **changed,
                "prompts": 1,
                "null": {**changed["null"], "combined": {**changed["null"]["combined"], "q_below_level": 0}},
            }
        )[0]
    )
    console = Console(file=io.StringIO(), width=140)
    print_detection(results, pq.read_table(folder / "prompts.parquet"), folder, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "Prompts by p-value",
        "[red]",
        "(×2)",
        "1 row(s) repeat",
        "29 null prompts",
        "does not clear a prompt",
    ):
        assert part in text, part


def test_half_precision_gives_p_values_too(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    half = copy.deepcopy(pipeline).to(torch.bfloat16)
    found = Detect(null=19, detectors=[GuidanceNorm(), MemAttn("E")])(given(half, tmp_path))
    assert not found["null"]["left_out"]
    exact = pq.read_table(tmp_path / "prompts.parquet")["guidance_norm_1"].to_pylist()
    Detect(null="none", detectors=[GuidanceNorm()])(given(pipeline, tmp_path / "fp32"))
    whole = pq.read_table(tmp_path / "fp32" / "prompts.parquet")["guidance_norm_1"].to_pylist()
    assert exact == pytest.approx(whole, rel=0.1)
