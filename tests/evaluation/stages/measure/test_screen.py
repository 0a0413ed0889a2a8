"""What evaluate.py prints."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from memtrain.evaluation.stages.measure.screen import print_results


def results(**changes: Any) -> dict[str, Any]:
    share = {"k": 3, "n": 4, "share": 0.75, "interval": [0.3, 0.95]}
    nothing = {"k": 0, "n": 0, "share": None, "interval": [0.0, 1.0]}
    group = {"n": 10, "reproduced": 7, "interval": [0.4, 0.9], "best_ratio": {"median": 0.5}}
    signal = {
        "column": "denoising_loss",
        "observed": "low",
        "declared": "low",
        "auroc": 0.987,
        "true_positive_rate": 0.5,
    }
    return {
        "replication": {
            "groups": {"planted": group},
            "threshold": 0.7,
            "neighbours": 50,
            "n_heldout": 99,
            "false_positive_rate": 0.01,
        },
        "sampling": {"seeds": [0, 1]},
        "detectors": {"guidance_norm_1": {"comparisons": {"planted_vs_heldout": {"auroc": 0.9, "interval": [0.8, 1]}}}},
        "training": {
            "planted": 4,
            "signals": [signal],
            "flags": {"precision": nothing, "recall": share, "false_positive_rate": share},
        },
        "quality": {
            "heldout_loss": 0.125,
            "kid": {
                "value": 0.0217,
                "standard_error": 0.0031,
                "n_generated": 396,
                "n_real": 99,
                "features": "efficientnet-lite0",
            },
        },
        "verdict": {"cleared": False, "text": "This model reproduces training images.", "rests_on": ["Sixty prompts."]},
        **changes,
    }


def printed(content: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_results(content, Path("runs/x/evaluation"), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_figure_is_there_with_its_count() -> None:
    text = printed(results())
    for piece in (
        "planted",
        "40% to 90%",
        "99 held-out prompts",
        "0.900",
        "0.987",
        "3 of 4 (75%",
        "0.1250",
        "0.0217 (standard error 0.0031, features efficientnet-lite0)",
        "results.json",
    ):
        assert piece in text, piece
    assert "precision none to count" in text, "no flag, no precision"


def test_the_answer_comes_first_with_what_it_rests_on() -> None:
    measure = {
        "power": {"none": {"share": 1.0}, "crop": {"share": 0.5}, "mirror": {"share": 0.7}},
        "groups": {"planted": {"n": 14, "reproduced": 2, "expected": 0.26}, "heldout": {"n": 60, "reproduced": 1}},
    }
    copying = {"recommended": "tiles", "measures": {"tiles": measure}}
    text = printed({**results(), "copying": copying, "controls": {"tiles": {"hold": True}}})
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[:3] == [
        "May this model be released?",
        "No: do not release this model as it is.",
        "This model reproduces training images.",
    ]
    assert "  - Sixty prompts." in lines
    row = next(line for line in lines if "tiles (recommended)" in line)
    assert [cell.strip() for cell in row.split("│")[2:7]] == ["100%", "60%", "holds", "2 of 14", "about 0.3"]


def test_further_groups_and_doses_are_printed() -> None:
    content = results()
    group = content["replication"]["groups"]["planted"]
    assert "repetitions" not in printed(content)
    content["replication"]["groups"]["varied_captions"] = {**group, "n": 5, "reproduced": 4}
    doses = [{"repeats": r, "n": 20, "reproduced": r, "share": r / 20, "interval": [0.0, 0.5]} for r in (1, 13)]
    content["replication"]["doses"] = doses
    content["training"]["planted"] = 0
    content["training"]["flags"]["groups"] = {"varied_captions": {"k": 31, "n": 50, "share": 0.62, "interval": [0, 1]}}
    text = printed(content)
    for piece in ("varied captions", "Reproduced by repetitions", "65%", "of the group varied captions: 31 of 50 (62%"):
        assert piece in text, piece
    assert "precision" not in text


def test_a_run_that_was_not_monitored_is_printed_too() -> None:
    kid = {"value": None, "reason": "the features are not installed"}
    text = printed(results(training=None, detectors={}, quality={"heldout_loss": None, "kid": kid}))
    assert "KID was not measured: the features are not installed" in text
    assert "This model reproduces training images." in text
    assert "Flags" not in text


def test_an_error_that_is_not_known_is_not_printed_as_a_number() -> None:
    quality = results()["quality"]
    quality["kid"]["standard_error"] = None
    assert "0.0217 (standard error not known, features" in printed(results(quality=quality))


def test_names_of_files_do_not_act_on_the_terminal() -> None:
    asked = [{"name": "a\x1b[2J\u202e.png", "group": "planted", "files": 2, "ratio": 0.1, "reproduced": True}]
    found = results(families={"pictures": 1, "files": 2, "captions": 0, "asked": asked})
    found["verdict"]["text"] = "It reproduces \x1b]0;x\x07."
    screen = io.StringIO()
    print_results(found, Path("runs/x"), Console(file=screen, width=120))
    assert r"a\x1b[2J\u202e.png" in screen.getvalue() and r"reproduces \x1b]0;x\x07." in screen.getvalue()
    assert not {"\x1b", "\x07", "\u202e"} & set(screen.getvalue())
