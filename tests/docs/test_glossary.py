"""docs/glossary.md: what stands in the columns of records and in the main results is explained there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memtrain.evidence.evidence_table import FLAGGED_COLUMNS
from memtrain.evidence.promise import FIELDS
from memtrain.families.table import COLUMNS
from memtrain.monitoring.run_records import SAMPLES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
NAMES = {name for row in ROWS for name in re.findall(r"`([^`]+)`", row)}
TERMS = [line[4:].lower() for line in TEXT.splitlines() if line.startswith("### ")]

STEPS = ("key", "epoch", "step", "batch", "rank", "timestep", "prompt_length", "score", "flagged", "weight")
EVIDENCE = ("flagged_share", "skipped", "group", "visits_per_epoch")
RESULTS = ("replication", "copying", "controls", "counts", "detectors", "training", "quality", "families")
VERDICT = ("cleared", "reasons", "counted_by", "share_below")


@pytest.mark.parametrize(
    "name", sorted({*STEPS, *EVIDENCE, *FLAGGED_COLUMNS, *SAMPLES.names, *COLUMNS, *FIELDS, *RESULTS})
)
def test_each_column_and_key_is_explained(name: str) -> None:
    assert name in NAMES


@pytest.mark.parametrize("name", VERDICT)
def test_each_key_of_the_verdict_is_explained(name: str) -> None:
    assert f"verdict.{name}" in NAMES


def test_terms_are_sorted_and_stand_once() -> None:
    assert len(TERMS) == len(set(TERMS)) > 60
    assert [term.strip("`") for term in TERMS] == sorted(term.strip("`") for term in TERMS)
