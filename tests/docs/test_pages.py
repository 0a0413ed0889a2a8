"""Every command of the pages is understood, and every block of code names what is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.docs.pages import Block, Command, blocks, commands, pages, text_of
from tests.docs.parsing import placed, readers_folder, refusal, wrong_with_script

LANGUAGES = {
    *("python", "console", "sh", "bash", "yaml", "json", "diff", "text", "csv", "toml", "html", "markdown", "mermaid"),
    *("sbatch", "indented"),
}
BLOCKS = [block for page in pages() for block in blocks(page)]
COMMANDS = [command for page in pages() for command in commands(page)]
OURS = {" ".join(command.words): command for command in reversed(COMMANDS) if command.words[0] == "memtrain"}
PYTHON = [block for block in BLOCKS if block.language == "python"]
OLD = re.compile(r"python (train|evaluate)\.py[^`\n]*")


def test_the_pages_have_commands_and_code() -> None:
    assert len(OURS) > 40
    assert len(PYTHON) > 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reader's working folder; the process is in it."""
    made = tmp_path_factory.mktemp("reader")
    with readers_folder(made):
        yield made


@pytest.mark.parametrize("command", OURS.values(), ids=str)
def test_each_command_is_understood(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(command.page):  # files that the page has its reader write
        if block.title and "/" not in block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    words = placed(command.words[1:])
    if f"stages/{words[0]}/" in text_of(command.page):
        return  # the command of a stage that the page has its reader write
    if len(words) == 1 and command.inline:  # the name of a command in a sentence
        words = [*words, "--help"]
    said = refusal(words, monkeypatch)
    if command.inline and said is not None and ": expected one argument" in said:
        return  # an option that a sentence names without a value
    assert said is None, f"{command}\n{said}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["measure", "--runn", "runs/tiny"], "--runn"),
        (["mesure", "--run", "runs/tiny"], "mesure"),
        (["train", "--config", "configs/nothing.yaml"], "nothing.yaml"),
        (["train", "--data.init_args.pth", "my_folder"], "pth"),
        (["plan", "--data.init_args.pth", "my_folder"], "pth"),
        (["export", "--checkpoint", "a.ckpt"], "checkpoint"),
        (["scan", "my_folder", "--outputt", "a"], "--outputt"),
    ],
)
def test_a_command_that_is_wrong_is_not(
    words: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert says in (refusal(words, monkeypatch) or "")


def test_files_and_options_of_other_commands_are_there() -> None:
    others = [command for command in COMMANDS if command.words[0] != "memtrain"]
    found = [f"{command}: {wrong}" for command in others if (wrong := wrong_with_script(command)) is not None]
    assert not found, "\n".join(found)


def test_a_missing_file_or_option_is_noticed() -> None:
    assert wrong_with_script(Command("a.md", 1, "python benchmarks/nothing.py")) == "there is no benchmarks/nothing.py"
    wrong = wrong_with_script(Command("a.md", 1, "python benchmarks/rates.py --rounds20 3"))
    assert wrong == "benchmarks/rates.py names no --rounds20"


def test_commands_are_called_memtrain() -> None:
    """README's two commands alone are those of a clone; commands with `fit` are of earlier versions, too."""
    found = []
    for page in pages():
        called = [match[0].strip() for match in OLD.finditer((ROOT / page).read_text(encoding="utf-8"))]
        allowed = {"train": 1, "evaluate": 1} if page == "README.md" else {}
        for name in ("train", "evaluate"):
            mine = [one for one in called if f"{name}.py" in one]
            found += [f"{page}: {one}" for one in mine[allowed.get(name, 0) :]]
    assert not found, "\n".join(found)


def test_languages_of_blocks_are_known() -> None:
    found = [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    assert not found, "a block needs a language: " + ", ".join(found)


def test_excerpts_stand_in_their_files() -> None:
    found = []
    for block in BLOCKS:
        path = block.mark("excerpt")
        text = textwrap.dedent(block.text).strip("\n")
        indented = [textwrap.indent(text, " " * width) for width in (0, 4, 8)]
        if path is not None and not any(one in (ROOT / path).read_text(encoding="utf-8") for one in indented):
            found.append(f"{block} is not in {path}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_names_of_python_blocks_are_there(block: Block) -> None:
    tree = ast.parse(textwrap.dedent(block.text))
    page, text = block.page, text_of(block.page)
    found = [
        wrong
        for node in ast.walk(tree)
        for wrong in _missing(node)
        if f"`{wrong.replace('.', '/')}.py`" not in text  # a file that the page has its reader write
        and f"{wrong}.py" not in [block.title for block in blocks(page)]
    ]
    assert not found, f"{block}: {', '.join(found)}"


def _missing(node: ast.AST) -> list[str]:
    """Modules and names of imports that are not there; names are looked for in memtrain alone."""
    if isinstance(node, ast.Import):
        return [one.name for one in node.names if not _module(one.name)]
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return []
    if not _module(node.module):
        return [node.module]
    if node.module.split(".")[0] != "memtrain":
        return []
    module: Any = importlib.import_module(node.module)
    names = [one.name for one in node.names]
    return [
        f"{node.module}.{name}" for name in names if not hasattr(module, name) and not _module(f"{node.module}.{name}")
    ]


def _module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_a_name_that_is_not_there_is_noticed() -> None:
    text = "from memtrain.guard import Guard, Gard\nimport nothing20\nfrom memtrain.gard import Guard"
    found = [wrong for node in ast.walk(ast.parse(text)) for wrong in _missing(node)]
    assert found == ["memtrain.guard.Gard", "nothing20", "memtrain.gard"]


def test_yaml_and_json_can_be_read() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "json":
            for line in [block.text] if block.text.lstrip().startswith(("{\n", "[\n")) else block.text.splitlines():
                json.loads(line)


PAGE = """# A page

    memtrain scan my_folder     # a comment
    NAME=1 sbatch slurm/train.sbatch \\
        --trainer.max_steps 2

Text with `memtrain measure
--run runs/x`, `memtrain STAGE` and `a | b`.

   ```python
   x = 1
   ```

<!-- not run: takes
 -->
<!-- not run: takes a GPU -->
```console
$ memtrain plan && memtrain train
Plan of a training
$ memtrain export --ckpt \\
>     a.ckpt
```
"""


def test_a_page_is_taken_apart() -> None:
    found = commands("page.md", PAGE)
    assert [(one.line, one.text, one.inline, one.not_run) for one in found] == [
        (3, "memtrain scan my_folder", False, None),
        (4, "NAME=1 sbatch slurm/train.sbatch --trainer.max_steps 2", False, None),
        (7, "memtrain measure --run runs/x", True, None),
        (18, "memtrain plan", False, "takes a GPU"),
        (18, "memtrain train", False, "takes a GPU"),
        (20, "memtrain export --ckpt a.ckpt", False, "takes a GPU"),
    ]
    assert [block.language for block in blocks("page.md", PAGE)] == ["indented", "python", "console"]
    assert blocks("page.md", PAGE)[1].text == "x = 1\n"
    assert found[1].words[0] == "sbatch"
