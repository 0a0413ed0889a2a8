"""The tables of the ablation: what they say of each row."""

from __future__ import annotations

from tests.benchmarks.ablation import content
from tests.benchmarks.scripts import Modules


def test_markdown_has_one_line_per_row_with_counts_and_number_of_seeds(scripts: Modules) -> None:
    text = scripts.mitigation_tables.markdown_tables(content(scripts))
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert "1 of 20 (1% to 24%)" in lines["recommended"]
    assert "0.1550 (0.0900 to 0.2200)" in lines["recommended"]
    assert "1.05 (1.01 to 1.11)" in lines["recommended"]
    assert "| 2 of 3 |" in lines["recommended"]
    assert lines["loss skipping"].endswith("| 50.0 % | 0.0 % | not measured |")
    assert "| – | – | 1.05" in lines["recommended"], "it skips nothing"
    assert "0 of 2,000 (0.00% to 0.19%)" in lines["recommended"]
    assert "| 2 of 120" in text
    assert "4 of 12" in text
    assert "takes 61 s" in text
