"""Section of `compare` in the report, made from `comparison.json` and its images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memtrain.evaluation.report.section import (
    KeyFigure,
    Section,
    from_template,
    made,
    results_of,
    table,
    thumbnail_uri,
)
from memtrain.evaluation.report.shares import percent_of, share_text, value_text, words
from memtrain.files.inside import below


def sections(folder: Path) -> list[Section]:
    """Make the section: the summary, the figures of each group, quality, and pictures side by side.

    Args:
        folder: the folder of the results.
    """
    results = results_of(folder, "comparison.json")
    if results is None:
        return []
    names = [run["name"] for run in results["runs"]]
    groups = results["groups"]
    headings = ("pictures", "n", *names, "stopped", "started", "change in points", "exact p", "lowest ratio")
    rows = [
        (
            words(name),
            one["n"],
            share_text(one["before"]),
            share_text(one["after"]),
            one["stopped"],
            one["started"],
            _change(one["change"], 100, ".1f"),
            f"{one['p_value']:.2g}",
            f"{one['best_ratio']['before']:.3f} to {one['best_ratio']['after']:.3f}, "
            + _change(one["best_ratio"]["change"], 1, ".3f"),
        )
        for name, one in groups.items()
    ]
    alike = [
        (words(name), measure, f"{found['before']:.3f}", f"{found['after']:.3f}", _change(found["change"], 1, ".3f"))
        for name, one in groups.items()
        for measure, found in one["similarity"].items()
    ]
    quality = [
        (words(name), _with(found, "before"), _with(found, "after"), f"{found['change']:+.4g}", _percent(found))
        for name, found in results["quality"].items()
    ]
    body = from_template(
        Path(__file__).with_name("section.html.j2"),
        results=results,
        names=names,
        groups=table(headings, rows, caption="Pictures that come back"),
        alike=table(
            ("pictures", "measure", *names, "change"), alike, caption="Similarity of the most similar generation"
        )
        if alike
        else "",
        quality=table(("figure", *names, "change", "relative"), quality, caption="Quality") if quality else "",
        cases=[_case(one, names, folder) for one in results["shown"]],
    )
    return [
        Section(
            title="Comparison",
            body=body,
            place=0,
            verdict={"level": "plain", "word": "What was gained, and what did it cost?", "text": results["summary"]},
            rests_on=_rests_on(results, names),
            cannot_say=[
                "Each run was trained once. The comparison does not show whether another seed of training gives the "
                "same difference.",
                "The comparison covers only pictures that both evaluations sampled.",
            ],
            figures=_figures(results),
            subject=" and ".join(names),
            facts=made({**results, "model": " and ".join(run["folder"] for run in results["runs"])}, "compare"),
        )
    ]


def _rests_on(results: Mapping[str, Any], names: list[str]) -> list[str]:
    paired, runs = results["paired"], results["runs"]
    thresholds = " and ".join(f"{run['threshold']:.3f} ({run['name']})" for run in runs)
    left = f"{paired['only_before']} prompts of {names[0]} and {paired['only_after']} of {names[1]} have no partner."
    return [
        f"Both evaluations sampled {paired['prompts']} prompts, with the same {len(results['sampling']['seeds'])} "
        f"seed(s).",
        f"Each run has its own threshold from its held-out prompts: {thresholds}.",
        *([left] if paired["only_before"] or paired["only_after"] else []),
    ]


def _figures(results: Mapping[str, Any]) -> list[KeyFigure]:
    figures = []
    if trained := results["groups"].get("trained on"):
        note = f"{trained['before']['k']} before, {trained['after']['k']} after, of {trained['n']}"
        figures.append(KeyFigure("pictures that come back", _change(trained["change"], 100, ".1f") + " points", note))
    for name in ("heldout_loss", "kid", "fid"):
        if found := results["quality"].get(name):
            note = f"{value_text(found['before'])} before, {value_text(found['after'])} after"
            figures.append(KeyFigure(words(name), f"{found['change']:+.4g}", note))
    return figures


def _change(found: Mapping[str, Any], factor: float, form: str) -> str:
    if found["mean"] is None:
        return "–"
    text = f"{factor * found['mean']:+{form}}"
    if found["interval"]:
        text += " (" + " to ".join(f"{factor * end:+{form}}" for end in found["interval"]) + ")"
    return text


def _with(found: Mapping[str, Any], when: str) -> str:
    ends = found.get(f"interval_{when}")
    inside = f" ({value_text(ends[0])} to {value_text(ends[1])})" if ends else ""
    return value_text(found[when]) + inside


def _percent(found: Mapping[str, Any]) -> str:
    return (
        "–" if found["relative"] is None else f"{'+' if found['relative'] > 0 else ''}{percent_of(found['relative'])}"
    )


def _case(one: Mapping[str, Any], names: list[str], folder: Path) -> dict[str, Any]:
    generations = []
    for name, when in zip(names, ("before", "after"), strict=True):
        ratio, copy = one[f"ratio_{when}"], one[f"reproduced_{when}"]
        alt = f"generation of {name} with seed {one['seed']}, ratio {ratio:.2f}{', reproduced' if copy else ''}"
        generations.append(
            {
                "uri": thumbnail_uri(below(folder, one[when], f"comparison.json: {when}")),
                "alt": alt,
                "said": f"{name}: {ratio:.2f}{' copy' if copy else ''}",
                "reproduced": copy,
                "elsewhere": "",
            }
        )
    return {
        "own": thumbnail_uri(below(folder, one["own"], "comparison.json: own")),
        "caption": one["caption"],
        "note": f"{words(one['group'])} · {one['key']} · seed {one['seed']}",
        "generations": generations,
        "curve": "",
    }
