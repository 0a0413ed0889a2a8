"""Every stage in parts: killed and gone on with, or shared by two processes, it finds what one at a stretch finds.

Only times differ, and the order in which files come to be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.errors import RecordError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.sampling.stored_samples import StoredSamples, UnfinishedParts
from memtrain.evaluation.stages.attention.attention import attention_plots
from memtrain.evaluation.stages.base import StageInput, stage_names
from memtrain.evaluation.stages.calibrate.calibrate import calibrate
from memtrain.evaluation.stages.detect.detect import detect
from memtrain.evaluation.stages.detect.score_parts import ScoreParts
from memtrain.evaluation.stages.localize.localize import localize
from memtrain.evaluation.stages.localize.search import Search, search_part
from memtrain.evaluation.stages.measure.evaluate_run import evaluate_run
from memtrain.evaluation.stages.measure.results import Statistics
from memtrain.evaluation.stages.metrics.metrics import measure_folders
from memtrain.evaluation.stages.mitigate.mitigate import mitigate
from memtrain.evaluation.stages.parts import Parts
from memtrain.evaluation.stages.prompts import Prompt, PromptToScore
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.inference.attention_masking import AttentionMasking
from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.records import HELDOUT, UNIQUE

PROMPTS = [
    PromptToScore("a b", True),
    PromptToScore("c d", None),
    *(PromptToScore(text, False) for text in ("e", "f g", "h i", "j", "k l", "m n o")),
]
IMAGES = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SAMPLING = Sampling(seeds=(0, 1), steps=1, guidance_scale=4.0, batch_size=2, progress=False)
TIMES = {"created", "seconds", "seconds_per_image", "seconds_per_prompt", "scored_seconds", "timing"}
"""Keys and columns about time."""

Work = Callable[[StageInput, Shard | None], Any]


def measured(given: StageInput, shard: Shard | None) -> Any:
    prompts = [Prompt(f"k{row}", one.text, UNIQUE if row < 3 else HELDOUT) for row, one in enumerate(PROMPTS)]
    samples = RunSamples(
        prompts=prompts,
        own_images=IMAGES,
        training_images=IMAGES[:3],
        training_keys=["k0", "k1", "k2"],
        heldout=(IMAGES[3:], [one.text for one in PROMPTS[3:]]),
    )
    statistics = Statistics(false_positive_rate=0.3, resamples=5)
    return evaluate_run(given, samples, statistics=statistics, kid=False, shard=shard, detectors=[GuidanceNorm()])


def localized(given: StageInput, shard: Shard | None) -> Any:
    others = [one.text for one in PROMPTS[2:]]
    statistics = ActivationStatistics.measure(Predictor.of(given.pipeline), others)
    search = Search(threshold=-1.0, statistics=statistics, settings=Settings(seeds=2))
    if shard is not None and shard != WHOLE:
        _, left = search_part(given, shard=(shard.index, shard.count), search=search)
        if left:
            raise UnfinishedParts(f"{left} prompts are", given.output)
    return localize(given, search=search, probe_steps=1, shard=shard or WHOLE)


def folders_measured(given: StageInput, shard: Shard | None) -> Any:
    place = given.output.parent / "pictures"
    for row, image in enumerate(IMAGES):
        for kind in ("generated", "original"):
            (place / kind).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((image if kind == "original" else image.flip(1)).permute(1, 2, 0).numpy())
            name = f"img_{row:04d}_00.jpg" if kind == "generated" else f"{row}.png"
            if not (place / kind / name).exists():
                picture.save(place / kind / name)
    prompts = place / "prompts.csv"
    if not prompts.exists():
        prompts.write_text("caption\n" + "\n".join(one.text for one in PROMPTS) + "\n", encoding="utf-8")
    return measure_folders(
        str(place / "generated"), str(prompts), output=given.output, original=str(place / "original"), shard=shard
    )


STAGES: dict[str, Work] = {
    "attention": lambda given, shard: attention_plots(given, most=1, shard=shard),
    "calibrate": lambda given, shard: calibrate(given, settings=Settings(seeds=24), shard=shard),
    "detect": lambda given, shard: detect(given, [GuidanceNorm()], shard=shard, part_seconds=0.0),
    "localize": localized,
    "measure": measured,
    "metrics": folders_measured,
    "mitigate": lambda given, shard: mitigate(given, AttentionMasking(c1=2.0), others=1, shard=shard),
}
QUICK = ("metrics",)
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STAGES]


def given(pipeline: StableDiffusionPipeline, output: Path) -> StageInput:
    return StageInput(
        pipeline=pipeline, prompts=PROMPTS, output=output, own_images=IMAGES, sampling=SAMPLING, model="a model"
    )


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    return [without_times(one) for one in content] if isinstance(content, list) else content


def found_in(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold, but for times, locks and what says when they were written."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.startswith(".lock"):
            continue
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            found[name] = table.select([one for one in table.column_names if one not in TIMES]).to_pylist()
        elif path.suffix == ".safetensors":  # the order of what is said in its head is not fixed
            found[name] = {key: value.tolist() for key, value in load_file(path).items()}
        else:
            found[name] = path.read_bytes()
    return found


def compare(first: Path, second: Path) -> None:
    """File by file, so that a difference is read easily."""
    one, other = found_in(first), found_in(second)
    assert set(one) == set(other)
    for name, content in one.items():
        if isinstance(content, dict):
            assert set(content) == set(other[name]), name
            for key, value in content.items():
                assert value == other[name][key], (name, key)
        assert content == other[name], name


def shared(work: Callable[[], Any]) -> bool:
    """Whether a process had the last word."""
    try:
        return work() is not None
    except UnfinishedParts:
        return False


@pytest.mark.parametrize("name", ALL)
def test_two_processes_find_what_one_finds(name: str, pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    work = STAGES[name]
    work(given(pipeline, tmp_path / "whole"), WHOLE)
    both = given(pipeline, tmp_path / "both")
    if name not in ("localize", "detect"):
        with pytest.raises(RecordError, match="missing"):
            work(both, None)
    first = [shared(lambda part=part: work(both, Shard(part, 2))) for part in (1, 0)]
    assert not first[0]
    if not first[1]:
        work(both, None)
    compare(tmp_path / "both", tmp_path / "whole")


@pytest.mark.parametrize("name", ALL)
def test_what_was_killed_goes_on(
    name: str, pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = STAGES[name]
    work(given(pipeline, tmp_path / "whole"), WHOLE)
    written: list[str] = []
    with monkeypatch.context() as patch:
        for kind, method in ((Parts, "_write"), (StoredSamples, "write"), (ScoreParts, "append")):
            patch.setattr(kind, method, killed_after(2, getattr(kind, method), written))
        with pytest.raises(KeyboardInterrupt):
            work(given(pipeline, tmp_path / "killed"), WHOLE)
    assert len(written) == 2
    again: list[str] = []
    with monkeypatch.context() as patch:
        for kind, method in ((Parts, "_write"), (StoredSamples, "write")):
            patch.setattr(kind, method, killed_after(10**6, getattr(kind, method), again))
        work(given(pipeline, tmp_path / "killed"), WHOLE)
    assert not set(written) & set(again), "what was done is not done again"
    compare(tmp_path / "killed", tmp_path / "whole")


def killed_after(count: int, method: Callable[..., Any], written: list[str]) -> Callable[..., Any]:
    """A method that is interrupted when it was called so often."""

    def work(self: Any, first: Any, *rest: Any, **named: Any) -> Any:
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(f"{type(self).__name__} {first}")
        return method(self, first, *rest, **named)

    return work


def test_every_stage_is_here() -> None:
    """But those that read results and are done in seconds."""
    assert {*STAGES, "compare", "report"} == set(stage_names())
