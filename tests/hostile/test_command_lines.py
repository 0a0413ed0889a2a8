"""Command lines that cannot be understood: one line, what was expected, and a remedy; never a traceback or a dump."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtrain import cli
from memtrain.cli.trusted import guard
from tests.hostile.rows import TINY, Row, check, train_parser, written


def evaluated(name: str, words: str, says: str, *files: tuple[str, str]) -> Row:
    """`evaluate.py` with these words, and files beside it."""

    def call(folder: Path) -> None:
        for path, content in files:
            written(folder, content, path)
        cli.evaluate(words.split())

    return Row(name, call, says)


def trained(name: str, words: list[str], says: str) -> Row:
    """`train.py fit` with these words behind the default configuration."""
    return Row(name, lambda folder: train_parser().parse_args(["fit", "--config", TINY, *words]), says)


def commanded(name: str, words: list[str], says: str) -> Row:
    """Another command of `train.py`."""
    return Row(name, lambda folder: cli.train(words), says)


PROMPTS = "detect --model m --prompts p "
EVALUATED = [
    evaluated("misspelt_option", "detect --promts p", r"no option --promts(.|\n)*did you mean --prompts\?"),
    evaluated("misspelt_stage", "detct --prompts p", r"no stage 'detct'"),
    evaluated("option_of_another_stage", "measure --bake x", r"no option --bake"),
    evaluated("text_for_a_number", PROMPTS + "--steps many", r"steps is 'many'\n  Expected: a whole number"),
    evaluated("a_fraction_of_a_step", PROMPTS + "--steps 1.5", r"steps is '1\.5'"),
    evaluated("a_list_of_steps", PROMPTS + "--steps [1]", r"steps is"),
    evaluated("no_value", PROMPTS + "--steps", r"steps"),
    evaluated("dtype_of_ones_own", PROMPTS + "--dtype float8", r"dtype is 'float8'\n  Expected: one of .*float32"),
    evaluated("word_beside_options", PROMPTS + "--steps 3 4", r"'4' stands without an option"),
    evaluated("detector_of_a_stranger", PROMPTS + "--detectors [stranger18.Thing]", r"names stranger18\.Thing, whose"),
    evaluated("detector_of_os", PROMPTS + "--detectors [os.system]", r"os\.system"),
    evaluated(
        "no_such_detector",
        PROMPTS + "--detectors [memtrain.detectors.memattn.MemAttm]",
        r"no MemAttm(.|\n)*did you mean MemAttn",
    ),
    evaluated("null_of_a_stranger", PROMPTS + "--null [stranger18.Thing]", r"null"),
    evaluated("no_config", PROMPTS + "--config nowhere.yaml", r"no configuration 'nowhere\.yaml'"),
    evaluated(
        "misspelt_config", PROMPTS + "--config mien.yaml", r"did you mean mine\.yaml", ("mine.yaml", "steps: 3\n")
    ),
    evaluated("config_at_an_address", PROMPTS + "--config https://example.com/a.yaml", r"is an address"),
    evaluated("config_in_a_bucket", PROMPTS + "--config s3://bucket/a.yaml", r"is an address"),
    evaluated("config_in_memory", PROMPTS + "--config memory://a.yaml", r"is an address"),
    evaluated("config_is_a_folder", PROMPTS + "--config .", r"\. is a folder"),
    evaluated("config_is_a_device", PROMPTS + "--config /dev/zero", r"/dev/zero is not a plain file"),
    evaluated("config_inline_twice", PROMPTS + "--config a:", r"no configuration 'a:'"),
    evaluated(
        "config_with_a_typo",
        PROMPTS + "--config a.yaml",
        r"no option 'stepz'(.|\n)*did you mean steps",
        ("a.yaml", "stepz: 3\n"),
    ),
    evaluated("config_with_a_wrong_type", PROMPTS + "--config a.yaml", r"steps is 'many'", ("a.yaml", "steps: many\n")),
    evaluated(
        "config_that_trusts", PROMPTS + "--config a.yaml", r"no option 'trust'", ("a.yaml", "trust: torchscript\n")
    ),
    evaluated("trust_of_nothing", PROMPTS + "--trust", r"--trust without a package"),
    evaluated("trust_of_an_option", PROMPTS + "--trust --steps 3", r"--trust without a package"),
    evaluated("trust_of_a_path", PROMPTS + "--trust ../stranger18.py", r"--trust '\.\./stranger18\.py'"),
    evaluated("trust_of_everything", PROMPTS + "--trust *", r"--trust '\*'"),
    evaluated("trust_of_the_parser", PROMPTS + "--trust jsonargparse", r"--trust 'jsonargparse'"),
    evaluated("path_that_is_not_there", "detect --model ./modle --prompts cat", r"no model '\./modle'"),
    evaluated("absolute_path", "detect --model /nowhere/model --prompts cat", r"no model '/nowhere/model'"),
    evaluated("one_word_as_model", "detect --model modle --prompts cat", r"no model 'modle'"),
    evaluated(
        "misspelt_folder",
        "detect --model models/tinny --prompts cat",
        r"no model 'models/tinny'",
        ("models/tiny/a", ""),
    ),
    evaluated("model_at_an_address", "detect --model https://example.com/m --prompts cat", r"is an address"),
    evaluated("no_checkpoint", "detect --model last.ckpt --prompts cat", r"no checkpoint last\.ckpt"),
    evaluated("no_single_file", "detect --model dream.safetensors --prompts cat", r"no file dream\.safetensors"),
    evaluated("nul_in_a_path", "detect --model a\0b --prompts cat", r"no model"),
    evaluated("escape_in_a_path", "detect --model ./\x1b[2J --prompts cat", r"no model"),
    evaluated("long_path", f"detect --model ./{'x' * 5000} --prompts cat", r"no model"),
    evaluated("run_that_is_none", "detect --run nowhere --prompts cat", r"nowhere"),
]
TRAINED = [
    trained(
        "unknown_option", ["--trainer.max_stepz", "3"], r"--trainer\.max_stepz(.|\n)*did you mean --trainer\.max_steps"
    ),
    trained("end_of_an_option", ["--max_steps", "3"], r"--max_steps(.|\n)*did you mean --trainer\.max_steps"),
    trained("unknown_setting", ["--data.init_args.pth", "x"], r"no option.*pth"),
    trained("trainer_text", ["--trainer.max_steps", "many"], r"trainer\.max_steps is 'many'"),
    trained("callback_by_name", ["--trainer.callbacks", "os.system"], r"names os\.system"),
    trained("model_by_name", ["--model", "stranger18.Model"], r"names stranger18\.Model"),
    trained("help_of_a_stranger", ["--model.help", "stranger18.Model"], r"names stranger18\.Model"),
    trained("deep_value", ["--trainer.callbacks", "[" * 2000], r"nested too deep|trainer\.callbacks"),
    trained("a_stray_word", ["stray"], r"'stray' stands without"),
    trained("trusted_in_vain", ["--trust", "other", "--model", "stranger18.Model"], r"names stranger18\.Model"),
]
COMMANDS = [
    commanded("scan_of_nothing", ["scan", "nowhere"], r"'nowhere' does not exist"),
    commanded("scan_option", ["scan", "--outptu", "x"], r"--outptu(.|\n)*did you mean --output"),
    commanded("scan_config", ["scan", "--config", "nowhere.yaml"], r"no configuration"),
    commanded("rewind_without_a_run", ["rewind"], r"Nothing is said about run"),
    commanded("rewind_of_nothing", ["rewind", "--run", "nowhere"], r"nowhere is no run"),
    commanded("rewind_text", ["rewind", "--run", "x", "--remaining", "much"], r"remaining is 'much'"),
    commanded("export_nothing", ["export", "--ckpt", "no.ckpt", "--output", "o"], r"no\.ckpt"),
    commanded("export_option", ["export", "--ckptt", "a", "--output", "o"], r"--ckptt(.|\n)*did you mean --ckpt"),
]
ROWS = [*EVALUATED, *TRAINED, *COMMANDS]


@pytest.mark.parametrize("row", [row.param for row in ROWS])
def test_a_command_that_cannot_be_understood_is_refused(
    row: Row, confined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(row, confined, capsys)


def test_what_the_user_trusts_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was trusted once is not trusted by the next command."""
    written(
        tmp_path,
        "from memtrain.training.text_to_image import TextToImageModule\nclass Own(TextToImageModule):\n    pass\n",
        "own_model18.py",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["fit", "--config", TINY, "--model", "own_model18.Own"]
    found = train_parser().parse_args(["--trust", "own_model18", *words])
    assert found["fit"]["model"]["class_path"] == "own_model18.Own"
    assert train_parser().parse_args([*words, "--trust=own_model18"])["fit"]["model"]["class_path"] == "own_model18.Own"
    with pytest.raises(SystemExit):
        train_parser().parse_args(words)


def test_the_default_and_what_training_is_made_of_need_no_word() -> None:
    guard([])
    words = ["fit", "--config", TINY, "--optimizer", "torch.optim.SGD", "--optimizer.lr", "0.1"]
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "."]
    found = train_parser().parse_args([*words, *logger])
    assert found["fit"]["optimizer"]["class_path"] == "torch.optim.SGD"
