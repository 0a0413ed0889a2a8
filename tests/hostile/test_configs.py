"""Configurations that somebody else wrote: each is refused in one line, and nothing in it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtrain.cli.run_folder import run_data
from memtrain.files.yaml_file import read_mapping
from tests.hostile.rows import TINY, Row, check, train_parser, written

LAUGH = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{below}, *{below}, *{below}, *{below}]\n"
    for below, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


def read(name: str, content: str | bytes, says: str) -> Row:
    """A file that is no YAML of settings."""
    return Row(name, lambda folder: read_mapping(written(folder, content)), says)


def fit(name: str, content: str, says: str) -> Row:
    """Settings that stand behind those of the default."""

    def call(folder: Path) -> None:
        train_parser().parse_args(["fit", "-c", TINY, "--config", str(written(folder, content, "hostile.yaml"))])

    return Row(name, call, says)


def data_of_a_run(name: str, content: str, says: str) -> Row:
    """The configuration in the folder of somebody's run."""
    return Row(name, lambda folder: run_data(written(folder, content, "run/config.yaml").parent), says)


FILES = [
    read("empty", "", r"a\.yaml holds nothing"),
    read("a_comment", "# nothing\n", r"a\.yaml holds nothing"),
    read("a_list", "- a\n", r"a\.yaml holds a list"),
    read("a_text", "settings", r"a\.yaml holds a str"),
    read("a_number", "1", r"a\.yaml holds a int"),
    read("two_documents", "a: 1\n---\nb: 2\n", r"a\.yaml is not YAML: .*document.*line 2"),
    read("a_number_as_key", "1: a\n", r"a\.yaml holds the key 1"),
    read("null_as_key", "null: a\n", r"a\.yaml holds the key None"),
    read("a_list_as_key", "? [a]\n: b\n", r"a\.yaml is not YAML"),
    read("not_closed", "a: [1, 2\n", r"a\.yaml is not YAML: .*line 2"),
    read("tabs", "a:\n\tb: 1\n", r"a\.yaml is not YAML: .*line 2"),
    read("two_colons", "a: b: c\n", r"a\.yaml is not YAML: .*line 1"),
    read("latin1", "a: caf\xe9".encode("latin1"), r"a\.yaml is not UTF-8: byte 6"),
    read("nul", "a: b\0c", r"a\.yaml holds a NUL"),
    read("a_surrogate", "a: \ud800", r"a\.yaml is not UTF-8"),
    read("an_escape", "a: \x1b[2J", r"a\.yaml is not YAML"),
    read("a_picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), r"a\.yaml is not UTF-8"),
    read("a_pickle", b"\x80\x04\x95\x00\x00\x00", r"a\.yaml is not UTF-8"),
    read("large", "a: " + "x" * 2**22, r"a\.yaml has more than \d+ bytes"),
    read("deep_list", "a: " + "[" * 5000, r"a\.yaml is nested too deep in line 1"),
    read("deep_mapping", "{a: " * 500 + "1" + "}" * 500, r"a\.yaml is nested too deep"),
    read("laughs", LAUGH, r"a\.yaml grows beyond 100,000 values by the alias"),
    read("laughs_of_keys", LAUGH.replace("[x, x]", "{x: 1}"), r"a\.yaml grows beyond"),
    read("holds_itself", "a: &a [*a]\n", r"a\.yaml grows beyond 100,000 values by the alias \*a in line 1"),
    read("mapping_holds_itself", "a: &a {b: *a}\n", r"a\.yaml grows beyond"),
    read("unknown_alias", "a: *b\n", r"a\.yaml is not YAML: .*undefined alias.*line 1"),
    read("key_twice", "a: 1\nb: 2\na: 3\n", r"a\.yaml has the key 'a' twice in one mapping, again in line 3"),
    read("inner_key_twice", "a:\n  b: 1\n  b: 2\n", r"a\.yaml has the key 'b' twice .* line 3"),
    read("key_twice_in_a_list", "a: [{b: 1, b: 2}]\n", r"a\.yaml has the key 'b' twice"),
    read("python_object", "a: !!python/object/apply:os.system [ls]\n", r"a\.yaml is not YAML: .*python/object.*line 1"),
    read("python_name", "a: !!python/name:os.system\n", r"a\.yaml is not YAML: .*python/name"),
    read("python_module", "a: !!python/module:stranger18\n", r"a\.yaml is not YAML: .*python/module"),
    read("tag_of_ones_own", "a: !include other.yaml\n", r"a\.yaml is not YAML: .*!include"),
    read("broken_base64", "a: !!binary b\n", r"a\.yaml is not YAML"),
    read("no_day", "a: 2020-13-45\n", r"a\.yaml is not YAML"),
    read("many_digits", "a: " + "9" * 5000, r"a\.yaml is not YAML: .*digits"),
]


def nested(name: str, content: str, says: str) -> Row:
    """Settings in a file that the configuration names."""

    def call(folder: Path) -> None:
        inner = written(folder, content, "inner.yaml")
        config = written(folder, f"data: {inner}\n", "outer.yaml")
        train_parser().parse_args(["fit", "-c", TINY, "--config", str(config)])

    return Row(name, call, says)


MODEL = "model: {class_path: %s}\n"
CALLBACK = "trainer:\n  callbacks+:\n    - class_path: %s\n      init_args: {%s}\n"
NAMED = r"names stranger18\.\w+, whose code would be run(.|\n)*--trust stranger18"
SETTINGS = [
    fit("model_of_a_stranger", MODEL % "stranger18.Model", f"model {NAMED}"),
    fit("data_of_a_stranger", "data: {class_path: stranger18.Thing}\n", f"data {NAMED}"),
    fit("callback_of_a_stranger", CALLBACK % ("stranger18.Thing", ""), rf"trainer\.callbacks {NAMED}"),
    fit("logger_of_a_stranger", "trainer: {logger: {class_path: stranger18.Thing}}\n", rf"trainer\.logger {NAMED}"),
    fit("plugin_of_a_stranger", "trainer: {plugins: [{class_path: stranger18.Thing}]}\n", rf"trainer\.plugins {NAMED}"),
    fit("optimizer_of_a_stranger", "optimizer: {class_path: stranger18.Thing}\n", NAMED),
    fit("profiler_of_a_stranger", "trainer: {profiler: {class_path: stranger18.Thing}}\n", NAMED),
    fit(
        "trusted_by_the_file",
        "trust: stranger18\nmodel: {class_path: stranger18.Model}\n",
        r"stranger18|no option 'trust'",
    ),
    fit("a_shell", CALLBACK % ("os.system", ""), r"names os\.system, whose code would be run"),
    fit("a_process", CALLBACK % ("subprocess.Popen", "args: [ls]"), r"names subprocess\.Popen"),
    fit("a_builtin", CALLBACK % ("builtins.exec", ""), r"names builtins\.exec"),
    fit("imported_by_torch", CALLBACK % ("torch.os.system", ""), r"names torch\.os\.system"),
    fit("imported_by_memtrain", MODEL % "memtrain.records.shutil.rmtree", r"names memtrain\.records\.shutil\.rmtree"),
    fit("imported_by_ours", MODEL % "memtrain.data.module.Path", r"names \S*Path"),
    fit("from_the_hub", MODEL % "torch.hub.load", r"names torch\.hub\.load"),
    fit("a_pickle_reader", MODEL % "torch.load", r"names torch\.load"),
    fit("a_compiler", MODEL % "torch.utils.cpp_extension.load", r"names torch\.utils\.cpp_extension\.load"),
    fit(
        "lightnings_tools",
        MODEL % "lightning.pytorch.utilities.migration.migrate_checkpoint",
        r"names lightning\.pytorch\.util",
    ),
    fit(
        "a_demonstration",
        MODEL % "lightning.pytorch.demos.boring_classes.BoringModel",
        r"names lightning\.pytorch\.demos",
    ),
    fit("the_parser_itself", MODEL % "jsonargparse.set_parsing_settings", r"names jsonargparse\.set_parsing_settings"),
    fit("our_command", MODEL % "memtrain.cli.evaluate", r"names memtrain\.cli\.evaluate"),
    fit(
        "hook_by_name",
        CALLBACK % ("lightning.pytorch.callbacks.LambdaCallback", "on_fit_start: stranger18.call"),
        r"stranger18\.call",
    ),
    fit("hook_of_os", CALLBACK % ("lightning.pytorch.callbacks.LambdaCallback", "setup: os.remove"), r"os\.remove"),
    fit("another_kind_of_class", MODEL % "torch.optim.SGD", r"model is torch\.optim\.SGD"),
    fit("no_such_class", MODEL % "memtrain.training.text_to_image.Model", r"model: there is no Model in memtrain"),
    fit("no_such_module", MODEL % "memtrain.training.nothing.Model", r"model.* (no|not there)"),
    fit("no_such_short_name", MODEL % "TextToImageModel", r"model"),
    fit("path_as_class", MODEL % "../../stranger18.Model", r"model"),
    fit("escape_as_class", 'model: {class_path: "a\\e[2Jb.C"}\n', r"model"),
    fit("number_as_class", MODEL % "3", r"model"),
    fit("list_as_class", MODEL % "[a]", r"model"),
    fit(
        "misspelt_option",
        "trainer: {max_stepz: 3}\n",
        r"no option 'trainer\.max_stepz'(.|\n)*did you mean trainer\.max_steps",
    ),
    fit("misspelt_setting", "model: {init_args: {lorra: 3}}\n", r"no option 'lorra'(.|\n)*did you mean lora"),
    fit(
        "text_for_a_number",
        "data: {init_args: {resolution: big}}\n",
        r"data\.init_args\.resolution .* is 'big'\n  Expected: a whole number",
    ),
    fit("a_list_for_a_number", "trainer: {max_steps: [1]}\n", r"trainer\.max_steps"),
    fit("a_mapping_for_a_text", "data: {init_args: {path: {a: 1}}}\n", r"data\.init_args\.path"),
    fit("nothing_as_trainer", "trainer: [1]\n", r"trainer"),
    fit("bomb_in_a_value", "trainer: " + repr(LAUGH).replace("'", '"') + "\n", r"trainer|grows beyond"),
    fit("unknown_section", "evil: {a: 1}\n", r"no option 'evil"),
    fit("uncut_name", "x" * 5000 + ": 1\n", r"hostile\.yaml is not YAML"),
]

NESTED = [
    nested("named_file_of_a_stranger", "class_path: stranger18.Thing\n", f"data {NAMED}"),
    nested("named_file_with_a_bomb", LAUGH, r"grows beyond 100,000 values"),
    nested("named_file_not_closed", "a: [\n", r"data names a file that is not YAML: did not find .*, line 2"),
    nested("named_file_key_twice", "init_args: {path: a, path: b}\n", r"the key 'path' twice"),
    nested("named_file_of_objects", "a: !!python/name:os.system\n", r"data names a file that is not YAML: .*line 1"),
    nested("named_file_names_itself", "data: inner.yaml\n", r"data"),
]

OURS = "memtrain.data.module.TextImageDataModule"
RUNS = [
    data_of_a_run("run_with_foreign_data", "data: {class_path: stranger18.Thing}\n", r"names stranger18\.Thing, whose"),
    data_of_a_run(
        "run_with_foreign_part",
        f"data: {{class_path: {OURS}, init_args: {{captions: {{class_path: stranger18.Thing}}}}}}\n",
        r"stranger18|captions",
    ),
    data_of_a_run("run_without_data", "trainer: {}\n", r"config\.yaml"),
    data_of_a_run("run_of_a_list", "- 1\n", r"config\.yaml holds a list"),
    data_of_a_run("run_of_text_as_data", "data: hello\n", r"config\.yaml"),
    data_of_a_run("run_of_numbers_as_data", "data: [1]\n", r"config\.yaml"),
    data_of_a_run("run_with_a_bomb", LAUGH, r"config\.yaml grows beyond"),
    data_of_a_run("run_with_objects", "data: !!python/object:stranger18.Thing {}\n", r"config\.yaml is not YAML"),
]
ROWS = [*FILES, *SETTINGS, *NESTED, *RUNS]
QUICK = 20
"""Settings in the plain suite, which take a tenth of a second each; the others are among the slow tests."""


@pytest.mark.parametrize("row", [row.param for row in [*FILES, *SETTINGS[:QUICK], *NESTED, *RUNS]])
def test_a_hostile_configuration_is_refused(row: Row, confined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(row, confined, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row.param for row in SETTINGS[QUICK:]])
def test_hostile_settings_are_refused(row: Row, confined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(row, confined, capsys)
