"""Sections of `measure` in the report, made from `results.json`, `samples.parquet` and their images.

The page shows results of every version, and leaves out the parts that a file lacks. The order follows the questions of
the person who must decide: the answer, its reasons, the worst pictures, the counts, the method, and then the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from memtrain.errors import RecordError
from memtrain.evaluation.report.section import (
    Section,
    from_template,
    joined,
    made,
    paragraph,
    percent,
    results_of,
    table,
)
from memtrain.evaluation.stages.measure.answer import answer, cannot_say, key_figures, rests_on
from memtrain.evaluation.stages.measure.charts import strip
from memtrain.evaluation.stages.measure.next_steps import next_steps
from memtrain.evaluation.stages.measure.shown_copying import (
    controls_section,
    copying_section,
    counts_section,
    curve_section,
    detector_curves,
    quality_section,
)
from memtrain.evaluation.stages.measure.shown_pictures import by_prompt, family_cases, group_cases, worst_cases
from memtrain.evaluation.stages.network_figures import distance, network_rows
from memtrain.files.parquet_table import read_parquet
from memtrain.records import HELDOUT, VARIED_CAPTIONS, VARIED_IMAGES


def sections(folder: Path) -> list[Section]:
    """Make the sections of an evaluated run; none if the stage has not run.

    Args:
        folder: the folder of the results.

    Raises:
        RecordError: if the table of samples is missing.
    """
    results = results_of(folder, "results.json")
    if results is None:
        return []
    samples = folder / "samples.parquet"
    if not samples.is_file():
        raise RecordError(
            f"{samples} does not exist",
            expected="the output folder of an evaluation",
            remedy="check the path, or run `memtrain measure` again",
        )
    rows = read_parquet(
        samples, needed=("key", "seed", "caption", "group"), remedy="run `memtrain measure` again"
    ).to_pylist()
    prompts = by_prompt(rows)
    return [
        _answer(results),
        *_worst(results, prompts, folder),
        _replication(results, prompts, folder),
        *copying_section(results, prompts),
        *counts_section(results),
        *curve_section(results),
        *controls_section(results),
        *quality_section(results),
        *_networks(results),
        *_training(results),
        *_detectors(results, prompts),
        _images(results, prompts, folder),
    ]


def _rendered(part: str, **context: Any) -> Markup:
    """Render one part of the template, which holds all parts."""
    return from_template(Path(__file__).with_name("section.html.j2"), part=part, **context)


def _reasons_title(verdict: Mapping[str, Any]) -> str:
    """Title of the list of reasons; reasons beside a proof are further observations."""
    if not verdict.get("reasons"):
        return ""
    return "Further observations" if verdict.get("cleared") is False else "Why the model is not cleared"


def _answer(results: Mapping[str, Any]) -> Section:
    """Make the first screen, and the reasons why the model is not cleared."""
    return Section(
        title=_reasons_title(results["verdict"]),
        body=_rendered("reasons", results=results, steps=_steps(results)),
        place=1,
        verdict=answer(results),
        rests_on=rests_on(results),
        cannot_say=cannot_say(results),
        figures=key_figures(results),
        subject=_subject(results),
        limits=_limits(len(results["sampling"]["seeds"])),
        facts=_facts(results),
        config=results["config"],
    )


def _steps(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what to do next; a run has the configuration of its trainer."""
    return next_steps(results["verdict"], audit="trainer" not in (results.get("config") or {}))


def _subject(results: Mapping[str, Any]) -> str:
    config = results.get("config") or {}
    named = results.get("model") or config.get("run") or config.get("name") or config.get("model")
    return named if isinstance(named, str) else ""


def _worst(results: Mapping[str, Any], prompts: list[dict[str, Any]], folder: Path) -> list[Section]:
    measure = (results.get("copying") or {}).get("recommended")
    cases = worst_cases(prompts, folder, measure=measure)
    if not cases:
        return []
    body = _rendered("worst", cases=cases, measure=measure, curves=any(case["curve"] for case in cases))
    return [Section(title="Nearest to copies", body=body, place=2)]


def _replication(results: Mapping[str, Any], prompts: list[dict[str, Any]], folder: Path) -> Section:
    replication = results["replication"]
    groups = {name: [prompt["best"] for prompt in prompts if prompt["group"] == name] for name in replication["groups"]}
    label = "ratio of pixel distances: distance to own image / distance to nearest others, best seed"
    body = _rendered(
        "replication",
        results=results,
        family_grid=family_cases(results, prompts, folder),
        chart=strip(groups, replication["threshold"], name="ratio", label=label, higher=False),
        heldout=HELDOUT,
        templates=[name for name in (VARIED_CAPTIONS, VARIED_IMAGES) if name in replication["groups"]],
    )
    return Section(title="Are training images reproduced?", body=body, place=3)


def _images(results: Mapping[str, Any], prompts: list[dict[str, Any]], folder: Path) -> Section:
    grids = {}
    for group in results["replication"]["groups"]:
        cases, of = group_cases(prompts, group, folder)
        grids[group] = {"cases": cases, "of": of}
    return Section(title="Images of every group", body=_rendered("images", grids=grids), place=9, folded=True)


def _training(results: Mapping[str, Any]) -> list[Section]:
    if not results["training"]:
        return []
    return [Section(title="Flags and signals during training", body=_rendered("training", results=results), place=8)]


def _detectors(results: Mapping[str, Any], prompts: list[dict[str, Any]]) -> list[Section]:
    if not results["detectors"]:
        return []
    body = joined([_rendered("detectors", results=results), detector_curves(results, prompts)])
    return [Section(title="Detectors", body=body, place=8)]


def _networks(results: Mapping[str, Any]) -> list[Section]:
    """Make the section of figures that need weight files, if there are any."""
    found = results.get("networks")
    if not found:
        return []
    rows = [
        (group.replace("_", " "), *row) for group, figures in found["groups"].items() for row in network_rows(figures)
    ]
    rows += [("held-out prompts", name, distance(found[name]), "") for name in ("FID", "CLIP_FID") if name in found]
    said = "The weight files of the command measured these figures. Compare figures of one paper's convention only."
    body = joined([paragraph(said), table(("prompts", "figure", "value", "n"), rows, caption="Figures by networks")])
    return [Section(title="Figures by networks", body=body, place=7)]


def _limits(seeds: int) -> list[str | Markup]:
    return [
        f"The evaluation sampled only the prompts above, with {seeds} {'seed' if seeds == 1 else 'seeds'} each. "
        "It does not count training images of other prompts, nor images that appear for another seed, "
        "guidance scale or wording.",
        "Pixel distance sees near-exact copies. It does not see copies that are shifted, mirrored, recoloured or "
        "partial, nor copied style.",
        Markup(
            "A generation that copies a training image of <em>another</em> caption does not count as reproduced. It "
            "has the mark ↗, and <code>nearest_key</code> in <code>samples.parquet</code> names the image."
        ),
        "A ratio just below the threshold means that a generation is closer than those of held-out prompts. It need "
        "not be a visible copy. Look at the images.",
        "The threshold holds for prompts like the held-out ones. It does not cover training captions that are longer, "
        "rarer or otherwise different.",
        "A model that reproduced nothing here may still have memorized images. An adversarial prompt or embedding may "
        "bring them back.",
    ]


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    sampling, statistics = results["sampling"], results["statistics"]
    return [
        *made(results, "measure"),
        ("sampling", f"{sampling['images']} images, with {sampling['scheduler']}"),
        (
            "statistics",
            f"{percent(statistics['level'])} intervals: Wilson for shares, bootstrap for AUROC "
            f"({statistics['resamples']} resamples, seed {statistics['seed']})",
        ),
        ("schema", str(results["schema_version"])),
    ]
