"""Every block of code and every command of the pages runs, page by page, in a small world (`world.py`)."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from memtrain.cli.command import main
from tests.docs.pages import Block, Command, blocks, commands, pages
from tests.docs.world import CODE, make_world, presumed, run_folder, runs_named, small, take_for_granted

ELSEWHERE = {
    "pip": "the tests of the wheel",
    "pytest": "the tests themselves",
    "ruff": "CI",
    "mypy": "CI",
    "mkdocs": "CI",
    "bash .ci/": "CI",
    ". ": "the tests of the wheel",
    "bash slurm/": "tests/slurm",
    "sbatch": "tests/slurm",
    "python -m venv": "the tests of the wheel",
    "python -m tests.": "the tests of these modules",
    "python benchmarks/": "tests/benchmarks",
    "python examples/": "tests/test_examples.py and tests/integration/test_your_own_script.py",
    "python train.py": "`memtrain train`, which it calls",
    "python evaluate.py": "`memtrain measure`, which it calls",
}
"""Commands that run in other tests, by their first words, and where."""
MOST_NOT_RUN = 10
"""Blocks and commands with the comment `not run`; to be lowered when one of them runs."""
OWN_TESTS = {"CONTRIBUTING.md": "tests/test_contributing.py"}
"""Pages whose code is put into files and run by a test of its own."""

Step = Block | Command
STEPS: dict[str, list[Step]] = {
    page: sorted(
        [
            *(block for block in blocks(page) if block.language == "python" or block.title),
            *(command for command in commands(page) if not command.inline),
        ],
        key=lambda step: step.line,
    )
    for page in pages()
}


def reason(step: Step) -> str | None:
    """Why a step does not run, by a comment on its page."""
    return step.mark("not run") if isinstance(step, Block) else step.not_run


def elsewhere(step: Step) -> str | None:
    """Where else a step runs."""
    if isinstance(step, Block):
        excerpt = step.mark("excerpt")
        return OWN_TESTS.get(step.page) if excerpt is None else f"the tests of {excerpt}"
    text = " ".join(step.words)
    return next((where for start, where in ELSEWHERE.items() if text.startswith(start)), None)


HERE = {page: [one for one in steps if reason(one) is None and elsewhere(one) is None] for page, steps in STEPS.items()}
NOT_RUN = [
    f"{step}: {reason(step)}"
    for steps in STEPS.values()
    for step in steps
    if reason(step) is not None and elsewhere(step) is None
]


def test_what_does_not_run_is_listed_and_becomes_less() -> None:
    assert len(NOT_RUN) <= MOST_NOT_RUN, "\n".join(NOT_RUN)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The world; the process is in it."""
    folder, before = make_world(tmp_path_factory.mktemp("world")), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def prepared(world: Path) -> Path:
    """A finished run, where a page takes one for granted."""
    words = ["train", "--config", "configs/tiny_baseline.yaml", "--trainer.default_root_dir", "runs/prepared"]
    with pytest.MonkeyPatch.context() as patch:
        run_command(small(words, world), patch)
        run_command(small(["measure", "--run", "runs/prepared"], world), patch)
    shutil.move("runs/prepared", "prepared")
    return world / "prepared"


def run_command(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a command of memtrain; status 3 and 4 are answers of `--fail_on`."""
    patch.setattr(sys, "argv", ["memtrain", *words])
    answers = (None, 0, *((3, 4) if "--fail_on" in words else ()))
    try:
        main(words)
    except SystemExit as ended:
        if ended.code not in answers:
            raise AssertionError(f"memtrain {' '.join(words)}\nended with {ended.code}") from None


DONE: set[tuple[str, ...]] = set()
"""Commands that ran; the same words run once, unless a page needs what they write."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page, steps in HERE.items() if steps])
def test_a_page_runs(page: str, world: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.syspath_prepend(str(world))
    names = presumed()
    for step in HERE[page]:
        with monkeypatch.context() as patch:
            if isinstance(step, Command):
                run_step(step, world, prepared, patch)
            elif step.title:
                Path(step.title).parent.mkdir(parents=True, exist_ok=True)
                Path(step.title).write_text(step.text, encoding="utf-8")
                importlib.invalidate_caches()
            if isinstance(step, Block) and step.language == "python":
                for run in re.findall(r"(runs/\w+)/records", step.text):
                    take_for_granted(run, prepared)
                text = textwrap.dedent(step.text)
                for name, here in CODE.items():
                    text = text.replace(name, here)
                code = compile("\n" * step.line + text, page, "exec")
                exec(code, names)


def run_step(command: Command, world: Path, prepared: Path, patch: pytest.MonkeyPatch) -> None:
    """Run a command of a page where it has not run yet."""
    words = small(command.words[1:], world)
    for run in runs_named(words):
        take_for_granted(run, prepared)
    if words[0] == "train" and "--ckpt_path" not in words:
        shutil.rmtree(run_folder(words), ignore_errors=True)
    elif words[0] != "scan" and tuple(words) in DONE:  # a scan is quick, and a page's next command reads its files
        return
    DONE.add(tuple(words))
    try:
        with contextlib.chdir(world):
            run_command(words, patch)
    except (Exception, AssertionError) as error:
        raise AssertionError(f"{command}\nas memtrain {' '.join(words)}") from error
