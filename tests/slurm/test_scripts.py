"""The job scripts as text: they parse, their paths exist, their variables are explained before the first option."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
OPTIONS = {
    "job-name",
    "nodes",
    "ntasks-per-node",
    "gpus-per-node",
    "cpus-per-task",
    "time",
    "requeue",
    "open-mode",
    "output",
}


def test_all_scripts_are_there():
    assert [script.name for script in SCRIPTS] == ["evaluate.sbatch", "scan.sbatch", "train.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_parses_it(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "slurm" / "README.md"], ids=lambda script: script.name)
def test_every_path_it_names_exists(script):
    text = script.read_text()
    named = re.findall(r"\b(?:configs|slurm)/[\w./-]*\w", text) + re.findall(r"\b(?:train|evaluate)\.py\b", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_variable_is_explained_at_the_top(script):
    top, body = script.read_text().split("\n#SBATCH --", 1)
    # What a user may set is what the body gives a default, less what Slurm and OpenMP define.
    settable = set(re.findall(r"\$\{([A-Z_]+):-", body))
    settable = {name for name in settable if not name.startswith(("SLURM_", "OMP_"))}
    explained = set(re.findall(r"^#   ([A-Z]+)  +\S", top, flags=re.MULTILINE))
    assert explained == settable


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_it_states_every_option_that_a_user_may_want_to_override(script):
    lines = script.read_text().splitlines()
    given = [match[1] for line in lines if (match := re.match(r"#SBATCH --([a-z-]+)", line))]
    assert set(given) == OPTIONS | ({"signal"} if script.name == "train.sbatch" else set())
    # sbatch stops reading options at the first command.
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_outside_a_job_it_says_how_to_submit_it(script, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    done = subprocess.run(["bash", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"sbatch slurm/{script.name}" in done.stderr


def start(script, folder, *arguments, **variables):
    """Run a job script in a folder, as Slurm would, with an `srun` that prints its arguments."""
    srun = folder / "bin" / "srun"
    srun.parent.mkdir(exist_ok=True)
    if not srun.exists():
        srun.write_text('#!/bin/bash\nprintf "<%s>" "$@"\n')
        srun.chmod(0o755)
    return subprocess.run(
        ["bash", ROOT / "slurm" / script, *arguments],
        cwd=folder,
        env={"PATH": f"{srun.parent}:/usr/bin:/bin", "SLURM_JOB_ID": "1", **variables},
        capture_output=True,
        text=True,
    )


def train(folder, *arguments, **variables):
    (folder / "train.py").touch()
    (folder / "my config.yaml").touch()
    job = {"CONFIG": "my config.yaml", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "4"}
    return start("train.sbatch", folder, *arguments, **(job | variables))


def evaluate(folder, *arguments, **variables):
    for run in ("a", "b c"):
        (folder / run).mkdir()
    (folder / "evaluate.py").touch()
    for stage in ROOT.glob("memtrain/evaluation/stages/*/stage.py"):
        place = folder / stage.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return start("evaluate.sbatch", folder, *arguments, **variables)


def test_training_is_told_the_shape_of_the_job(tmp_path):
    done = train(tmp_path, "--trainer.max_steps", "3")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].strip("<>").split("><")
    assert words[words.index("python") :] == [
        *["python", "train.py", "fit", "--config", "my config.yaml"],
        *["--trainer.num_nodes", "2", "--trainer.devices", "4"],
        *["--trainer.accelerator", "gpu", "--trainer.strategy", "ddp"],
        *["--trainer.max_steps", "3"],
    ]


@pytest.mark.parametrize(("restarts", "resumes"), [({}, False), ({"SLURM_RESTART_COUNT": "2"}, True)])
def test_only_a_requeued_job_resumes_and_overrides_the_first_checkpoint(tmp_path, restarts, resumes):
    done = train(tmp_path, "--ckpt_path", "first.ckpt", **restarts)
    assert done.returncode == 0, done.stderr
    last = "<--ckpt_path><last>" if resumes else "<--ckpt_path><first.ckpt>"
    assert done.stdout.endswith(last)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_GPUS_ON_NODE": "2"}, "2 GPUs but 4 tasks per node"),
        ({"SLURM_GPUS_ON_NODE": ""}, "ACCELERATOR=cpu"),
        ({"CONFIG": "missing.yaml"}, "CONFIG=missing.yaml is not a file"),
    ],
)
def test_a_job_that_cannot_train_is_refused(tmp_path, variables, message):
    done = train(tmp_path, **variables)
    assert done.returncode == 2
    assert message in done.stderr


# An `srun` that waits for the signal and says what Slurm's own does of tasks that end; commands that note their words.
JOB = {
    "srun": """
if [[ -n "$WAITS" ]]; then
    trap TOLD=1 USR1
    echo $$ >pid
    kill -USR1 $PPID
    until [[ -n "$TOLD" ]]; do /bin/sleep 0.02; done
fi
printf '%b' "step 3\\r$SAYS" >&2
exit $ENDS""",
    "scancel": 'echo scancel "$@" >>said; kill -USR1 $(<pid)',
    "scontrol": 'echo scontrol "$@" >>said; kill $PPID',
    "squeue": "echo ${STATE:-RUNNING}",
    "sleep": "exec /bin/sleep $(($1 == 60 ? 0 : $1 > 5 ? 5 : $1))",
}


def train_in_a_job(folder, **variables):
    """Run the training script with such commands; it, and what it told Slurm."""
    (folder / "bin").mkdir()
    for name, text in JOB.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    done = train(folder, **({"WAITS": "", "SAYS": "", "ENDS": "0"} | variables))
    said = folder / "said"
    return done, said.read_text().splitlines() if said.exists() else []


STOPPED = "srun: error: node1: tasks 0-3: Exited with exit code 138\\n"
KILLED = "srun: error: node2: task 5: Killed\\nsrun: error: node1: task 0: Exited with exit code 143\\n"


@pytest.mark.parametrize(
    ("says", "ends", "requeued"),
    [
        (STOPPED, 138, True),
        ("srun: error: node1: task 0: Terminated\\n", 143, True),
        ("srun: error: node1: task 1: Exited with exit code 143\\n" + KILLED, 143, True),
        ("", 0, False),
        (KILLED, 143, False),
        ("srun: error: node1: task 1: Exited with exit code 1\\n" + STOPPED, 138, False),
    ],
)
@pytest.mark.parametrize("waits", ["", "1"])
def test_only_a_stopped_run_is_requeued_and_the_first_task_that_ended_says_why(tmp_path, says, ends, requeued, waits):
    done, said = train_in_a_job(tmp_path, SAYS=says, ENDS=str(ends), WAITS=waits)
    assert said == ["scancel --signal=USR1 1"] * bool(waits) + ["scontrol requeue 1"] * requeued
    if not requeued:
        assert done.returncode == ends
    if ends and not requeued:
        first = "rank 5 on node2: Killed" if says == KILLED else "rank 1 on node1: Exited with exit code 1"
        assert f"job 1 ends because of {first}" in "".join(done.stderr.splitlines(keepends=True)[-3:])
        assert "scontrol requeue 1" in done.stderr.splitlines()[-1]


def test_tasks_that_had_not_begun_are_not_started_again(tmp_path):
    done, said = train_in_a_job(tmp_path, SAYS="srun: error: node1: task 0: User defined signal 1\\n", ENDS="138")
    assert (done.returncode, said) == (138, [])
    assert "Submit it again with more --time" in done.stderr


def test_a_cancelled_job_is_left_alone(tmp_path):
    done, said = train_in_a_job(tmp_path, SAYS=STOPPED, ENDS="138", STATE="COMPLETING")
    assert (done.returncode, said) == (138, [])


def test_tasks_that_do_not_end_are_not_waited_for(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        deaf = JOB["srun"].replace('[[ -n "$TOLD" ]]', "grep -q requeue said")
        patch.setitem(JOB, "srun", deaf)
        patch.setitem(JOB, "scontrol", 'echo scontrol "$@" >>said')
        done, said = train_in_a_job(tmp_path, WAITS="1", PATIENCE="1")
    assert said == ["scancel --signal=USR1 1", "scontrol requeue 1"]
    assert "have not ended after 1 s" in done.stdout


def test_training_on_cpus_asks_for_no_gpus(tmp_path):
    done = train(tmp_path, ACCELERATOR="cpu", SLURM_GPUS_ON_NODE="")
    assert done.returncode == 0, done.stderr
    assert "<--trainer.accelerator><cpu>" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "run", "rest"),
    [
        (["a"], {}, "a", []),
        (["a", "b c", "--steps", "3"], {"SLURM_ARRAY_TASK_ID": "1"}, "b c", ["--steps", "3"]),
        (["--steps", "3"], {"RUNS": "a"}, "a", ["--steps", "3"]),
        ([], {"RUNS": "x a", "SLURM_ARRAY_TASK_ID": "1"}, "a", []),
        (["a"], {"RUNS": "x y"}, "a", []),
    ],
)
def test_the_array_index_picks_the_run(tmp_path, arguments, variables, run, rest):
    done = evaluate(tmp_path, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    words = ["python", "evaluate.py", "measure", "--run", run, *rest]
    assert done.stdout.splitlines()[-1] == "".join(f"<{word}>" for word in words)


def test_the_prompts_of_a_model_are_shared_by_the_array(tmp_path):
    rest = ["detect", "--model", "my model", "--prompts", "p.csv"]
    done = evaluate(tmp_path, *rest, SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "".join(f"<{word}>" for word in ["python", "evaluate.py", *rest])


def test_the_first_word_may_name_the_stage(tmp_path):
    done = evaluate(tmp_path, "localize", "a", "--shard", "0/1")
    assert done.returncode == 0, done.stderr
    words = ["python", "evaluate.py", "localize", "--run", "a", "--shard", "0/1"]
    assert done.stdout.splitlines()[-1] == "".join(f"<{word}>" for word in words)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], {}, "no run folder"),
        (["detect", "a", "--model", "m"], {}, "exclude each other"),
        (["--model", "m", "--prompts", "p"], {}, "such as: detect --model M"),
        (["a", "b c"], {}, "sbatch --array=0-1"),
        (["a", "b c"], {"SLURM_ARRAY_TASK_ID": "2"}, "array index 2, but 2 runs"),
        (["missing"], {}, "missing, is not a folder"),
    ],
)
def test_a_wrong_list_of_runs_is_refused(tmp_path, arguments, variables, message):
    done = evaluate(tmp_path, *arguments, **variables)
    assert done.returncode == 2
    assert message in done.stderr


def scan(folder, *arguments, **variables):
    (folder / "train.py").touch()
    return start("scan.sbatch", folder, *arguments, **variables)


def test_a_scan_is_told_the_data_and_leaves_the_array_to_the_command(tmp_path):
    rest = ["my images", "--output", "runs/scan"]
    done = scan(tmp_path, *rest, SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "".join(f"<{word}>" for word in ["python", "train.py", "scan", *rest])


def submit_array(folder, *words, **variables):
    """Run `array.sh` with an `sbatch` that notes its words and the variable, and gives job ids."""
    (folder / "bin").mkdir()
    (folder / "slurm").mkdir()
    (folder / "slurm" / "scan.sbatch").touch()
    text = 'printf "<%s>" "$MEMTRAIN_MERGE" "$@" >>said; echo >>said; echo $((40 + $(wc -l <said)));'
    (folder / "bin" / "sbatch").write_text(f"#!/bin/bash\n{text}\n")
    (folder / "bin" / "sbatch").chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "array.sh", *words],
        cwd=folder,
        env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
    )
    said = folder / "said"
    return done, [line.strip("<>").split("><") for line in said.read_text().splitlines()] if said.exists() else []


def test_an_array_and_the_merge_that_waits_for_it(tmp_path):
    words = ["slurm/scan.sbatch", "my images", "--output", "out"]
    done, said = submit_array(tmp_path, "8", "--time=1:00:00", *words, MERGE="--mem=8G --cpus-per-task=2")
    assert done.returncode == 0, done.stderr
    merge = ["--dependency=afterany:41", "--time=1:00:00", "--mem=8G", "--cpus-per-task=2", *words, "--shard", "merge"]
    assert said == [["job", "--parsable", "--array=0-7", "--time=1:00:00", *words], ["job", "--parsable", *merge]]
    assert "job 41 does 8 parts; job 42 waits for it" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is no number"),
        (["0", "slurm/scan.sbatch"], "0 is no number"),
        (["2"], "no script"),
        (["2", "--time", "9", "slurm/scan.sbatch"], "9 is no script"),
    ],
)
def test_a_wrong_array_is_refused(tmp_path, words, message):
    done, said = submit_array(tmp_path, *words)
    assert (done.returncode, said) == (2, [])
    assert message in done.stderr


def test_a_scan_of_nothing_is_refused(tmp_path):
    done = scan(tmp_path)
    assert done.returncode == 2
    assert "no data; name them" in done.stderr
