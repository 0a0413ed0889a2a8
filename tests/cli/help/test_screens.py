"""Each command's help fits a screen, has an example that parses, and lists every option under exactly one heading."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from typing import get_args

import pytest

from memtrain.cli.command import commands, main
from memtrain.cli.evaluation import read_command
from memtrain.cli.help.listing import full_parser, listing, options_of
from memtrain.cli.help.overview import SCREENS, overview
from memtrain.cli.help.screen import Group, Screen
from memtrain.evaluation.stages.base import stage_names
from memtrain.evaluation.stages.measure.stage import Measure

OWN = {"--help", "--quiet", "--json", "--trust"}
"""Options that the parsers do not have."""
LIGHTNINGS = {"--ckpt_path", "--seed_everything", "--model", "--data", "--config", "--print_config"}
HEADINGS = {"--data.init_args", "--model.init_args", "--trainer", "--monitor"}


def test_every_command_has_a_screen_and_a_line_of_the_overview() -> None:
    assert set(SCREENS) == set(commands())
    for name in SCREENS:
        assert f"\n  {name} " in overview()


@pytest.mark.parametrize("name", ["", *SCREENS])
def test_help_fits_a_screen(name: str) -> None:
    lines = (SCREENS[name].text(80) if name else overview()).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("name", sorted({*SCREENS} - {"completion"}))
def test_every_option_stands_under_one_heading(name: str) -> None:
    screen, parser = SCREENS[name], options_of(full_parser(name))
    counted = Counter(screen.names())
    assert max(counted.values()) == 1
    real = {option for option in parser if not option.endswith(".help")}
    extra = LIGHTNINGS | {"--measure"} if name in ("train", "plan") else {"--config", "--print_config"}
    assert set(counted) - OWN - HEADINGS - extra == real - OWN - HEADINGS - extra
    assert real - OWN <= set(counted)


@pytest.mark.parametrize("name", SCREENS)
def test_choices_are_those_of_the_parser(name: str) -> None:
    parser = options_of(full_parser(name))
    for group in SCREENS[name].groups:
        for option, choices in group.choices().items():
            kind = getattr(parser.get(option), "_typehint", None)
            kind = getattr(kind, "_type", kind)
            literal = [one for one in get_args(kind) if isinstance(one, str)]
            if choices and literal:
                assert choices == literal, option


def test_the_listing_shows_defaults_choices_and_every_option() -> None:
    said = listing(SCREENS["measure"], 80)
    assert max(map(len, said.splitlines())) <= 80
    assert "--steps N                   the number of sampling steps (default 20)." in said
    assert "--engine local|ray" in said
    for option in SCREENS["measure"].names():
        assert f"\n  {option}" in said


@pytest.mark.parametrize("name", sorted({*stage_names()}))
def test_examples_of_stages_parse(name: str) -> None:
    for line in SCREENS[name].examples:
        words = shlex.split(line)
        assert words[:2] == ["memtrain", name]
        assert type(read_command(words[1:])).__name__.lower() == name


@pytest.mark.parametrize("name", ["demo", "scan", "rewind", "export"])
def test_examples_of_other_commands_parse(name: str) -> None:
    for line in SCREENS[name].examples:
        words = shlex.split(line)
        assert words[:2] == ["memtrain", name]
        if "--config" not in words:
            full_parser(name).parse_args(words[2:])


@pytest.mark.parametrize("asked", [["--help"], ["-h"], ["fit", "--help"]])
def test_the_help_of_training_imports_nothing_heavy_and_shows_what_to_type(
    asked: Sequence[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["memtrain"])
    for module in ("memtrain.cli.training", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    main(["train", *asked])
    said = capsys.readouterr().out
    assert said == SCREENS["train"].text() + "\n"
    for option in ("--config", "--data.init_args.path", "--trainer.max_steps", "--monitor.minimum_visits"):
        assert option in said
    assert "memtrain plan" in said
    assert "fit" not in said.split()


def test_three_ways_to_ask_for_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in (["--help", "all"], ["--help_all"], ["--help-all"]):
        main(["compare", *words])
        said.append(capsys.readouterr().out)
    assert said[0] == listing(SCREENS["compare"]) + "\n"
    assert len(set(said)) == 1


def test_a_wide_terminal_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert 80 < max(map(len, listing(SCREENS["measure"]).splitlines())) <= 110
    assert len(SCREENS["train"].text().splitlines()) < len(SCREENS["train"].text(80).splitlines())


def test_a_screen_is_written_from_its_groups() -> None:
    group = Group("Size", {"--width N": "in pixels (8)", "--shape flat|round": "of it"}, more="--depth --kind=a|b")
    screen = Screen("draw", "Draw it.", {"memtrain draw x": "", "memtrain draw --width 9": "wider"}, [group], words="X")
    assert screen.text(80).splitlines() == [
        "usage: memtrain draw [X] [options]",
        "",
        "Draw it.",
        "",
        "  memtrain draw x",
        "  memtrain draw --width 9   # wider",
        "",
        "Size:",
        "  --width N               in pixels (8)",
        "  --shape flat|round      of it",
        "",
        "`memtrain draw --help all` lists all 4 options.",
    ]
    assert group.choices() == {"--width": [], "--shape": ["flat", "round"], "--depth": [], "--kind": ["a", "b"]}
    assert group.folded().choices() == group.choices()


def test_the_option_of_a_value_named_help_is_no_question_for_help() -> None:
    stage = read_command(["measure", "--caption=--help"])
    assert isinstance(stage, Measure)
