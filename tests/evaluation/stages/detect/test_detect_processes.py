"""Detection by real processes: killed and gone on with, and shared; the table is the same to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

PROGRAM = """
import sys
from pathlib import Path
from diffusers import StableDiffusionPipeline
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.detect.detect import detect
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.shards import read_shard
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
calls = []
pipeline.unet.register_forward_hook(lambda *call: calls.append(1))
prompts = [PromptToScore(chr(97 + index % 26) * (1 + index % 5), index < 11) for index in range(23)]
sampling = Sampling(seeds=[0, 1], steps=6, batch_size=6, progress=False)
given = StageInput(pipeline=pipeline, prompts=prompts, output=Path(sys.argv[2]), sampling=sampling)
done = detect(given, [GuidanceNorm(None), MemAttn("D")], part_seconds=0.0, shard=read_shard())
print("merged" if done else "waiting", len(calls))
"""
CALLS = 8 * 6
"""23 prompts, three at a time, in six steps."""


def start(pipeline_folder: Path, output: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pipeline_folder), str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Whether it merged or waits for others, and how often the denoiser ran."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    word, calls = output.split()
    return word, int(calls)


@pytest.fixture(scope="module")
def uninterrupted(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process that nobody disturbs leaves."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(pipeline_folder, folder)) == ("merged", CALLS)
    return folder


@pytest.mark.slow
def test_a_killed_detection_goes_on_where_it_stopped(
    pipeline_folder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    process = start(pipeline_folder, tmp_path)
    while process.poll() is None and len(list(tmp_path.glob("detection/*/part-*"))) < 2:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "prompts.parquet").exists(), "killed too late to show anything"
    done = sum(pq.read_metadata(part).num_rows for part in tmp_path.glob("detection/*/part-*"))
    assert finish(start(pipeline_folder, tmp_path)) == ("merged", CALLS - done // 3 * 6)
    assert pq.read_table(tmp_path / "prompts.parquet") == pq.read_table(uninterrupted / "prompts.parquet")


@pytest.mark.slow
def test_parts_of_an_array_give_the_same_table(pipeline_folder: Path, uninterrupted: Path, tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "MEMTRAIN_SHARD": "array"}
    assert finish(start(pipeline_folder, tmp_path, SLURM_ARRAY_TASK_ID="1", **array)) == ("waiting", CALLS // 2)
    assert not (tmp_path / "prompts.parquet").exists()
    assert finish(start(pipeline_folder, tmp_path, SLURM_ARRAY_TASK_ID="0", **array)) == ("merged", CALLS // 2)
    assert pq.read_table(tmp_path / "prompts.parquet") == pq.read_table(uninterrupted / "prompts.parquet")
