"""What jsonargparse says in several levels becomes the one thing that the user did."""

from __future__ import annotations

import pytest

from memtrain.cli.refusal import own_error, refusal
from memtrain.errors import DataError

UNION = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'A'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'memtrain.data.module.TextImageDataModule':
        Parser key "resolution":
          Does not validate against any of the Union subtypes
          Subtypes: [<class 'int'>, typing.Literal['full'], <class 'NoneType'>]
          Errors:
            - Expected a <class 'int'>
            - Expected a typing.Literal['full', 'half']
            - Expected a <class 'NoneType'>
          Given value type: <class 'str'>
          Given value: big
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'resolution': 'big'}"""


def test_the_innermost_is_said_with_the_whole_name_of_the_option() -> None:
    found = refusal(UNION)
    assert found.problem == "data.init_args.resolution of TextImageDataModule is 'big'"
    assert found.expected == "a whole number or one of full, half or null"


@pytest.mark.parametrize(
    ("message", "problem", "remedy"),
    [
        ("unrecognized arguments: --promts a", "There is no option --promts", "did you mean --prompts?"),
        ("unrecognized arguments: a", "'a' stands without an option", "see --help"),
        ("Option 'promts' is not accepted", "The configuration has no option 'promts'", "did you mean prompts?"),
        (
            "something new of a later version",
            "something new of a later version",
            "see the same command with --help all",
        ),
        ("", "nothing", "see the same command with --help all"),
    ],
)
def test_what_was_meant_is_the_nearest_by_spelling(message: str, problem: str, remedy: str) -> None:
    found = refusal(message, ["--prompts", "--steps"])
    assert (found.problem, found.remedy) == (problem, remedy)


def test_an_error_of_ours_is_found_behind_those_of_the_parser() -> None:
    ours, theirs = DataError("ours", expected="a", remedy="b"), ValueError("theirs")
    theirs.__cause__ = ours
    assert own_error(theirs) is ours
    assert own_error(ValueError("theirs")) is None
