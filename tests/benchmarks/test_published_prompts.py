"""The benchmark of the papers: its cost in closed form, and a rehearsal whose forwards are those of the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

from .scripts import Modules


def test_the_plan_is_that_of_the_published_settings(scripts: Modules) -> None:
    """10 seeds, 50 guided steps, three conditions; one unguided call on 10 seeds for each caption."""
    cost = scripts.published_cost
    published = cost.Published.read()
    rows = published.rows(cost.Counts(), cost.Neurons(selections=9, layers=7, neurons=27))
    assert rows["detect"] == 500 * 4 * 2
    assert rows["calibrate"] == 50_000 * 10
    assert rows["localize: images"] == 500 * 10 * 50 * 2 * 3
    assert rows["localize: search"] == 500 * 10 * (1 + 9 + 7 + 27 + 1)
    assert rows["localize: fidelity"] == 3 * 500 * 10 * 5 * 8
    assert published.retriggered(cost.Counts()) == 3 * 500 * 50 * 8 * 3
    fewer = published.rows(cost.Counts(prompts=6, searched=4, memorized=1, captions=0, conditions=1), cost.Neurons())
    assert fewer["localize: fidelity"] == fewer["calibrate"] == 0
    assert fewer["localize: search"] == 10 * (1 + 9 + 7 + 27 + 1 + 3)


@pytest.mark.slow
def test_a_rehearsal_passes_the_rows_of_the_plan_and_goes_on_where_it_was(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, prompts, run = scripts.published_cost, scripts.published_prompts, tmp_path / "run"
    given: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "localize" / "published.yaml").read_text())
    given |= {"images_per_prompt": 2, "steps": 4}
    given["settings"] |= {"seeds": 3, "theta_step": 2.0}
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(yaml.safe_dump(given))
    for module in (cost, prompts):
        monkeypatch.setattr(module, "PUBLISHED", fewer)
    rows = prompts.rehearsed(2, run)
    assert {row["stage"] for row in rows} == {"detect", "calibrate", "localize"}
    assert all(row["planned"] == row["counted"] > 0 for row in rows)
    every = cost.Published.read().rows(cost.Counts(), cost.Neurons())
    assert prompts.costs(cost.Counts(), 60.0)[-2]["hours"] == pytest.approx(sum(every.values()) / 60 / 3600)
    assert (run / "metrics" / "metrics.json").is_file()
    again = {row["stage"]: row["counted"] for row in rows}
    search = {"threshold": -1.0, "settings": {"sequential": True}}
    commands = prompts.stages(
        str(run / "model"), run / "prompts.csv", run / "captions.csv", run, more=[], search=search
    )
    repeated = prompts.work(run / "prompts.csv", run, commands, [])
    assert repeated["detect"] == repeated["calibrate"] == 0, "what is finished is kept"
    assert repeated["localize"] < again["localize"]
