"""How many malformed inputs are tried."""

from __future__ import annotations

from tests.hostile import test_command_lines, test_configs, test_models, test_weights

TABLES = (test_configs, test_command_lines, test_models, test_weights)


def test_the_tables_are_long_and_no_row_stands_twice() -> None:
    counts = {table.__name__.rpartition("_")[2]: len(table.ROWS) for table in TABLES}
    print(f"{sum(counts.values())} malformed inputs: {counts}")
    assert sum(counts.values()) >= 200
    for table in TABLES:
        names = [row.name for row in table.ROWS]
        assert len(set(names)) == len(names)
