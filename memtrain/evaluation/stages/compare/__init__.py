"""Two evaluated runs against each other: what was gained, and what it cost."""
