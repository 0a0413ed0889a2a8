"""The figures of `results.json` as a newcomer reads them on a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memtrain.evaluation.measures.copying.calibration import PLAIN
from memtrain.evaluation.stages.measure.verdict import RATIO_IN_WORDS, UNJUDGED
from memtrain.files.shown import shown
from memtrain.records import MADE_CAPTION, NEVER_TRAINED, REPEATED

MOST_SIGNALS = 5
"""Signals listed; the rest is in results.json."""
SENTENCE = 2000
"""Characters of a sentence that are shown at most."""
MOST_FAMILIES = 10
"""Reproduced families listed; the rest is in results.json."""


def _share(value: Mapping[str, Any]) -> str:
    """`3 of 12 (25 %, 95 % interval 9-53 %)`."""
    if value.get("share") is None:
        return "none to count"
    low, high = value["interval"]
    return f"{value['k']} of {value['n']} ({value['share']:.0%}, interval {low:.0%} to {high:.0%})"


def _without_copies(kid: Mapping[str, Any]) -> str:
    without = kid.get("without_copies")
    if not without or without["value"] is None:
        return ""
    left = kid["n_generated"] - without["n_generated"]
    if not left:
        return "; none of them is nearest to a repeated training image"
    return f"; {without['value']:.4f} without the {left} that are nearest to a repeated training image"


def _print_kid(kid: Mapping[str, Any] | None, console: Console) -> None:
    if kid is not None and kid["value"] is None:
        console.print(f"KID was not measured: {kid['reason']}", markup=False)
    elif kid is not None:
        error = "not known" if kid["standard_error"] is None else f"{kid['standard_error']:.4f}"
        console.print(
            f"KID of {kid['n_generated']} generations for held-out prompts to {kid['n_real']} held-out images: "
            f"{kid['value']:.4f} (standard error {error}, features {kid['features']})"
            f"{_without_copies(kid)}",
            markup=False,
        )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def print_results(results: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print the verdict and the main tables.

    Args:
        results: content of `results.json`.
        folder: where the files are.
        console: where to print; default the standard output.
    """
    console = console or Console()
    replication = results["replication"]
    _print_answer(results["verdict"], console)
    if results.get("copying"):
        _print_measures(results["copying"], results.get("controls") or {}, console)
    title = f"Reproduced pictures, by {RATIO_IN_WORDS}"
    table = _table(title, "group", "reproduced", "of", "95 % interval", "best ratio, median")
    for name, group in replication["groups"].items():
        low, high = group["interval"]
        median = f"{group['best_ratio']['median']:.2f}"
        cells = (str(group["reproduced"]), str(group["n"]), f"{low:.0%} to {high:.0%}", median)
        table.add_row(name.replace("_", " "), *cells)
    console.print(table, markup=False)
    _print_doses(replication.get("doses", []), console)
    _print_families(results.get("families", {}), console)
    seeds, near = len(results["sampling"]["seeds"]), replication["neighbours"]
    console.print(
        f"By the ratio, a picture is reproduced if any of the {seeds} images of a prompt is closer than "
        f"{replication['threshold']:.2f} times the mean distance of its {near} nearest training images; "
        f"{threshold_words(replication)}.",
        markup=False,
    )
    _print_detectors(results["detectors"], console)
    if results["training"] is not None:
        _print_training(results["training"], console)
    if results["quality"]["heldout_loss"] is not None:
        console.print(f"Denoising loss on held-out images: {results['quality']['heldout_loss']:.4f}", markup=False)
    _print_kid(results["quality"].get("kid"), console)
    console.print(f"Figures: {folder / 'results.json'}", markup=False)


def _print_answer(verdict: Mapping[str, Any], console: Console) -> None:
    """The verdict, what it rests on, and what it cannot say: what a reader came for."""
    answer = {False: "No: do not release this model as it is.", True: "Nothing that was found speaks against it."}
    console.print("\nMay this model be released?", style="bold", markup=False)
    console.print(answer.get(verdict["cleared"], f"{UNJUDGED}."), style="bold", markup=False)
    console.print(shown(verdict["text"], most=SENTENCE), markup=False)
    for title, name in (("Basis of this answer", "rests_on"), ("Limits of this answer", "cannot_say")):
        if verdict.get(name):
            console.print(f"{title}:", style="bold", markup=False)
        for sentence in verdict.get(name, ()):
            console.print(f"  - {shown(sentence, most=SENTENCE)}", markup=False)
    console.print("", markup=False)


def _print_measures(copying: Mapping[str, Any], controls: Mapping[str, Any], console: Console) -> None:
    """How well each measure sees copies in these data, and what it found."""
    table = _table(
        "Measures of copying", "measure", "plain copies found", "edited ones", "control", "reproduced", "by chance"
    )
    for name, measure in copying["measures"].items():
        power = {edit: one["share"] for edit, one in measure["power"].items() if one["share"] is not None}
        edited = [share for edit, share in power.items() if edit != PLAIN]
        groups = [one for group, one in measure["groups"].items() if group not in NEVER_TRAINED]
        expected = [one["expected"] for one in groups]
        hold = controls.get(name, {}).get("hold")
        table.add_row(
            name + (" (recommended)" if name == copying["recommended"] else ""),
            f"{power[PLAIN]:.0%}" if PLAIN in power else "unknown",
            f"{sum(edited) / len(edited):.0%}" if edited else "unknown",
            {True: "holds", False: "fails"}.get(hold, "none"),
            f"{sum(one['reproduced'] for one in groups)} of {sum(one['n'] for one in groups)}",
            "unknown" if None in expected else f"about {sum(expected):.1f}",
        )
    console.print(table, markup=False)


def threshold_words(replication: Mapping[str, Any]) -> str:
    """Where the threshold comes from."""
    left_out = replication.get("heldout_left_out", 0)
    without = f" ({left_out} more are training images as well, and were left out)" if left_out else ""
    if replication["false_positive_rate"] is None:
        return f"no held-out prompts set that threshold{without}, so how often chance falls below it is not known"
    prompts = "captions that were made of the data's words" if made_by(replication) else "held-out prompts"
    return (
        f"{replication['n_heldout']} {prompts}{without} set that threshold at a false-positive rate of "
        f"{replication['false_positive_rate']:.2g}"
    )


def made_by(replication: Mapping[str, Any]) -> bool:
    """Whether made captions set the threshold, because no picture was held out."""
    return replication.get("calibrated_by") == MADE_CAPTION


def _print_families(families: Mapping[str, Any], console: Console) -> None:
    """How many pictures have several files, and the largest that came back."""
    if families.get("pictures"):
        some = "1 picture has" if families["pictures"] == 1 else f"{families['pictures']} pictures have"
        said = f"{some} several training files ({families['files']} in all). Each picture is counted once."
        console.print(said, markup=False)
    if captions := families.get("captions"):
        some = "1 caption is" if captions == 1 else f"{captions} captions are"
        console.print(f"{some} shared by several training pictures.", markup=False)
    table = _table(f"Reproduced families, by {RATIO_IN_WORDS}", "first file", "group", "files", "lowest ratio")
    for one in [one for one in families.get("asked", []) if one["reproduced"]][:MOST_FAMILIES]:
        table.add_row(
            shown(one["name"], most=80), one["group"].replace("_", " "), str(one["files"]), f"{one['ratio']:.2f}"
        )
    if table.row_count:
        console.print(table, markup=False)


def _print_doses(doses: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = _table(
        f"Reproduced by repetitions, by {RATIO_IN_WORDS}", "repeats", "reproduced", "of", "share", "95 % interval"
    )
    for dose in doses:
        low, high = dose["interval"]
        cells = (str(dose[name]) for name in ("repeats", "reproduced", "n"))
        table.add_row(*cells, f"{dose['share']:.0%}", f"{low:.0%} to {high:.0%}")
    if table.row_count:
        console.print(table, markup=False)


def _print_detectors(detectors: Mapping[str, Any], console: Console) -> None:
    table = _table("Detectors, from the prompt alone", "detector", "positives against", "AUROC", "95 % interval")
    for name, detector in detectors.items():
        for pair, found in detector["comparisons"].items():
            low, high = found["interval"]
            table.add_row(name, pair.replace("_", " "), f"{found['auroc']:.3f}", f"{low:.3f} to {high:.3f}")
    if table.row_count:
        console.print(table, markup=False)


def _print_training(training: Mapping[str, Any], console: Console) -> None:
    if training["signals"]:
        table = _table(
            "What training saw: planted against unique samples",
            "mean signal of a sample",
            "memorized when",
            "AUROC",
            "TPR at 1 % FPR",
        )
        for signal in training["signals"][:MOST_SIGNALS]:
            direction = signal["observed"] + (" (as observed)" if signal["declared"] == "unknown" else "")
            rate = f"{signal['true_positive_rate']:.2f}"
            table.add_row(signal["column"], direction, f"{signal['auroc']:.3f}", rate)
        console.print(table, markup=False)
    flags = training["flags"]
    if flags is not None and training["planted"]:
        console.print(
            f"Flags: precision {_share(flags['precision'])}, recall {_share(flags['recall'])}, "
            f"unique samples flagged {_share(flags['false_positive_rate'])}",
            markup=False,
        )
    by_picture = (flags or {}).get("pictures", {}).get("groups", {})
    if REPEATED in by_picture:
        console.print(f"Repeated pictures of which a file was flagged: {_share(by_picture[REPEATED])}", markup=False)
    for name, share in (flags or {}).get("groups", {}).items():
        console.print(f"Samples flagged of the group {name.replace('_', ' ')}: {_share(share)}", markup=False)
