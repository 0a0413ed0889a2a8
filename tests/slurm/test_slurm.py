"""The job scripts in a real Slurm, on CPUs: training on one node and on two, evaluation, resuming after a requeue.

Slow, and needs Debian's packages of Slurm; `local_slurm.py` starts and stops the daemons.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from memtrain.records import read_steps

from .local_slurm import LocalSlurm, slurm, wait_for  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CPU_JOB = ["--gpus-per-node=0", "--cpus-per-task=1", "--time=10"]
TRAIN_ARGUMENTS = [
    *["--trainer.max_steps", "8"],
    # Of the last callback in the list, ModelCheckpoint.
    *["--trainer.callbacks.init_args.every_n_train_steps", "2"],
    *["--data.init_args.duplicates", "null"],
    *["--data.init_args.heldout_fraction", "0.5"],
    *["--data.init_args.batch_size", "4"],
]
EVALUATE_ARGUMENTS = [
    *["--images_per_prompt", "1"],
    *["--max_prompts", "2"],
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("slurm") / "run"


@pytest.fixture(scope="module")
def images(run: Path) -> Path:
    """A shard with the first few images of the embedded clip art, so that the reference profile takes seconds."""
    few = run.parent / "few.tar"
    with tarfile.open(ROOT / "assets" / "clipart-pd.tar") as source, tarfile.open(few, "w") as target:
        for member in itertools.islice(source, 3 * 80):
            target.addfile(member, source.extractfile(member))
    return few


@pytest.fixture(scope="module", autouse=True)
def job_environment():
    """What sbatch hands to the jobs: the Python of these tests, one thread, no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("CONFIG", "configs/tiny.yaml")
        patch.setenv("ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.delenv("VENV", raising=False)
        yield


def submit_training(
    slurm: LocalSlurm,  # noqa: F811
    folder: Path,
    images: Path,
    *more: str,
    nodes: int,
    tasks: int,
    options: Sequence[str] = (),
    ends: tuple[str, str] = ("COMPLETED", "0:0"),
    meanwhile: Callable[[str], None] = lambda job: None,
) -> tuple[str, str]:
    """Train into a folder; the finished job's id, and what it printed."""
    log = folder.with_suffix(".out")
    job = slurm.submit(
        ROOT / "slurm" / "train.sbatch",
        *[*TRAIN_ARGUMENTS, "--data.init_args.path", str(images), "--trainer.default_root_dir", str(folder), *more],
        options=[*CPU_JOB, f"--nodes={nodes}", f"--ntasks-per-node={tasks}", f"--output={log}", *options],
        cwd=ROOT,
    )
    meanwhile(job)
    fields = slurm.wait(job, timeout=150)
    assert (fields["JobState"], fields["ExitCode"]) == ends, log.read_text()
    return job, log.read_text()


def assert_both_ranks_recorded(folder: Path) -> None:
    for rank in (0, 1):
        parts = folder / "records" / "steps" / f"rank-{rank:05d}"
        assert list(parts.glob("*.parquet")), f"rank {rank} recorded nothing"


@pytest.fixture(scope="module")
def trained(slurm: LocalSlurm, run: Path, images: Path) -> str:  # noqa: F811
    """The id of a finished training job of two tasks."""
    job, _ = submit_training(slurm, run, images, nodes=1, tasks=2)
    return job


def test_two_tasks_train_one_model(slurm: LocalSlurm, trained: str, run: Path):  # noqa: F811
    assert slurm.job(trained)["NumTasks"] == "2"
    assert_both_ranks_recorded(run)
    assert (run / "pipeline" / "model_index.json").is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_the_trained_run_is_evaluated(slurm: LocalSlurm, trained: str, run: Path):  # noqa: F811
    log = run.parent / "evaluate.out"
    job = slurm.submit(
        ROOT / "slurm" / "evaluate.sbatch",
        *[str(run), *EVALUATE_ARGUMENTS],
        options=[*CPU_JOB, "--array=0", f"--output={log}"],
        cwd=ROOT,
    )
    fields = slurm.wait(job, timeout=150)
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    assert json.loads((run / "evaluation" / "results.json").read_text())


def test_a_requeued_job_goes_on_from_its_last_checkpoint(slurm: LocalSlurm, trained: str, run: Path):  # noqa: F811
    log = run.with_suffix(".out")
    before = len(log.read_text())
    slurm.run("scontrol", "requeue", trained)
    fields = slurm.wait(trained, timeout=150)
    # --open-mode=append: what the first start printed is still there.
    printed = log.read_text()[before:]
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("COMPLETED", "0:0", "1"), printed
    assert f"start 2 of job {trained}" in printed
    assert f"Restored all states from the checkpoint at {run / 'checkpoints' / 'last.ckpt'}" in printed


def befallen(what: str) -> list[str]:
    """Arguments of a run that something befalls."""
    return [
        *["--trust", "tests.slurm.befalling", "--trainer.log_every_n_steps", "2"],
        *["--trainer.callbacks+=tests.slurm.befalling.Befalling", f"--trainer.callbacks.what={what}"],
    ]


def test_the_time_limits_signal_requeues_a_run_that_ends_as_if_nothing_had_been(
    slurm: LocalSlurm,  # noqa: F811
    trained: str,
    run: Path,
    images: Path,
    tmp_path: Path,
):
    stopped, log = tmp_path / "run", tmp_path / "run.out"

    def reach_the_limit(job: str) -> None:
        wait_for(lambda: log.exists() and "waiting for the signal" in log.read_text(), 150, lambda: str(log))
        hours, minutes, _ = map(int, slurm.job(job)["RunTime"].split(":"))
        # The controller looks every half minute, and finds less time left than --signal asks for.
        slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
        wait_for(lambda: slurm.job(job)["Restarts"] == "1", 90, lambda: f"the requeue\n{log.read_text()}")
        slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")

    job, printed = submit_training(
        slurm,
        stopped,
        images,
        *befallen("signal"),
        nodes=1,
        tasks=2,
        options=["--signal=B:USR1@170"],
        meanwhile=reach_the_limit,
    )
    assert "Stopped by SIGUSR1, with a checkpoint" in printed
    assert f"start 2 of job {job}" in printed
    assert f"Restored all states from the checkpoint at {stopped / 'checkpoints' / 'last.ckpt'}" in printed
    assert (slurm.job(job)["Restarts"], printed.count("the time limit is near")) == ("1", 1)
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert (stopped / weights).read_bytes() == (run / weights).read_bytes()
    assert records(stopped) == records(run)


def records(folder: Path) -> list[dict[str, object]]:
    """Every row of a run, in the order of batches and samples."""
    rows = read_steps(folder / "records").to_pylist()
    return sorted(rows, key=lambda row: (row["batch"], str(row)))


def test_a_rank_that_dies_ends_the_job_with_its_name(slurm: LocalSlurm, images: Path, tmp_path: Path):  # noqa: F811
    began = time.monotonic()
    job, printed = submit_training(
        slurm, tmp_path / "run", images, *befallen("death"), nodes=2, tasks=1, ends=("FAILED", "137:0")
    )
    assert slurm.job(job)["Restarts"] == "0"
    assert f"job {job} ends because of rank 1 on node2: Killed" in "".join(printed.splitlines(keepends=True)[-4:])
    assert time.monotonic() - began < 90


def test_two_nodes_train_one_model(slurm: LocalSlurm, images: Path, tmp_path: Path):  # noqa: F811
    job, printed = submit_training(slurm, tmp_path / "run", images, nodes=2, tasks=1)
    assert slurm.job(job)["NodeList"] == "node[1-2]"
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in printed
    assert_both_ranks_recorded(tmp_path / "run")


def test_an_array_scans_a_task_is_killed_and_the_merge_is_as_of_one_process(
    slurm: LocalSlurm,  # noqa: F811
    images: Path,
    tmp_path: Path,
):
    output, alone = tmp_path / "scan", tmp_path / "alone"
    script = [
        *CPU_JOB,
        f"--output={tmp_path}/scan-%A-%a.out",
        "slurm/scan.sbatch",
        str(images),
        "--output",
        str(output),
    ]

    def array() -> tuple[str, str]:
        said = slurm.run("bash", "slurm/array.sh", "2", *script, cwd=ROOT)
        return re.findall(r"job (\d+)", said)[0], re.findall(r"job (\d+)", said)[1]

    first, merge = array()
    wait_for(lambda: slurm.job(f"{first}_1")["JobState"] == "RUNNING", 60, slurm.logs)
    slurm.run("scancel", f"{first}_1")
    fields = slurm.wait(merge, timeout=90)
    printed = "".join(path.read_text() for path in tmp_path.glob(f"scan-{merge}-*.out"))
    assert fields["JobState"] == "FAILED", printed
    assert re.search(r"1 of 3 parts are missing in .*: part-0000000032-0000000063.safetensors", printed)
    assert f"make the missing parts here with: memtrain scan {images} --output {output}." in printed
    assert not (output / "scan.json").exists()

    _, merge = array()
    fields = slurm.wait(merge, timeout=120)
    printed = "".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), printed
    command = [sys.executable, "train.py", "scan", str(images), "--output", str(alone)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert json.loads((output / "scan.json").read_text())["images"] == 80
    assert (output / "report.html").is_file()
    for name in ("exclude.csv", "families.parquet"):
        assert (output / name).read_bytes() == (alone / name).read_bytes()
