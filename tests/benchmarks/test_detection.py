"""What scoring a prompt costs, in bytes and calls."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.scripts import Modules


def test_scoring_is_compared_with_keeping_every_map(scripts: Modules, pipeline_folder: Path, tmp_path: Path) -> None:
    """Bytes in closed form: steps, halves, heads, image tokens (a quarter in the middle), text tokens, fp16."""
    file = tmp_path / "figures.json"
    found = scripts.detection.main(str(pipeline_folder), steps=2, full_steps=4, repeats=1, json=str(file))
    assert json.loads(file.read_text()) == found
    rows = found["rows"]
    unet = scripts.detection.load(str(pipeline_folder), "own").unet
    sites = {name: module.heads for name, module in unet.named_modules() if name.endswith("attn2")}
    bytes_of = {name: 4 * 2 * heads * (16 if "mid" in name else 64) * 12 * 2 for name, heads in sites.items()}
    assert rows["published"]["kept_bytes"] == sum(bytes_of.values())
    assert rows["one step"]["kept_bytes"] == 4 + 8, "a norm, and two entropies of which one is used"
    assert rows["one step"]["times_less_kept"] > 50
    assert rows["published"]["times_faster"] == 1
