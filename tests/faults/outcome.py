"""What a command leaves, without what differs between any two runs of it: times, places, logs, pages."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import safe_open

VARIES = re.compile(
    r"(^|[_.])(seconds?|created|date|time|paths?|folder|output|memory|fingerprint|cached)($|[_.])|^run$|^model$"
)
"""Names of fields that say when, where and how fast."""
NOT_COMPARED = ("logs", "config.yaml", "log.txt", "runs")
"""Logs of each start, and the configuration, in which the checkpoint is named."""


@dataclass(frozen=True)
class Outcome:
    """What lies in a folder of results.

    Attributes:
        rows: every row of every table, with how often it is there.
        weights: a hash of the tensors in checkpoints, pipelines and masks, by file.
        files: a hash of every other file.
    """

    rows: Counter[str]
    weights: dict[str, str]
    files: dict[str, str]

    def against(self, reference: Outcome) -> dict[str, Any]:
        """Rows lost and doubled, and files that differ from those of the uninterrupted run."""
        files, weights = reference.files, reference.weights
        return {
            "rows_lost": (reference.rows - self.rows).total(),
            "rows_doubled": (self.rows - reference.rows).total(),
            "weights_differ": sorted(name for name in weights if self.weights.get(name) != weights[name]),
            "files_differ": sorted(name for name in files if self.files.get(name) != files[name]),
        }


def outcome(folder: Path) -> Outcome:
    """Read a folder of results; what is torn is an error of the reader's."""
    rows: Counter[str] = Counter()
    weights, files = {}, {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        parts = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith(".") for part in parts) or parts[0] in NOT_COMPARED:
            continue
        if re.match(r"records-\d+$", parts[0]) or path.suffix in (".md", ".previous"):
            continue
        if path.suffix == ".parquet":
            # Parts end where a process did: what counts is what is in them.
            table = "records/steps" if "steps" in parts else name
            rows.update(f"{table} {_plain(row)}" for row in pq.ParquetFile(path).read().to_pylist())
        elif path.suffix == ".ckpt":
            weights[name] = _tensors(torch.load(path, weights_only=True))
        elif path.suffix == ".html":
            files[name] = str("</html>" in path.read_text(encoding="utf-8")[-20:])
        elif path.suffix == ".json":
            files[name] = _sha(_plain(json.loads(path.read_text(encoding="utf-8"))).encode())
        elif path.suffix == ".safetensors":
            # Not the bytes of the file: the order of its metadata is another one each time.
            with safe_open(path, "pt") as held:
                told = json.dumps(held.metadata() or {}, sort_keys=True)
                tensors = {key: held.get_tensor(key) for key in sorted(held.keys())}
            weights[name] = _tensors({"global_step": told, "state_dict": tensors})
        else:
            files[name] = _sha(path.read_bytes())
    return Outcome(rows, weights, files)


def _plain(value: Any) -> str:
    def scrubbed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: scrubbed(item) for key, item in value.items() if not VARIES.search(key)}
        if isinstance(value, list):
            return [scrubbed(item) for item in value]
        return value

    return json.dumps(scrubbed(value), sort_keys=True, default=str)


def _tensors(checkpoint: dict[str, Any]) -> str:
    found = hashlib.sha256(str(checkpoint["global_step"]).encode())
    for part in (checkpoint["state_dict"], dict(enumerate(checkpoint.get("ema", {}).get("shadow_params", [])))):
        for name, value in part.items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().flatten().clone().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
