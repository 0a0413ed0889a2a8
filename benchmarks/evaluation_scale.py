"""Ten thousand training pictures of 512 px in an evaluation: disk, memory and time, with a kill in between.

    python benchmarks/evaluation_scale.py --json benchmarks/evaluation_scale.json

The pictures are the embedded clip art, enlarged, moved and recoloured, with noise: made for cost figures alone, they
say nothing of quality. They are kept in a file that is mapped into memory
(memtrain.evaluation.sampling.stored_images); the process that writes it is killed with SIGKILL at 40 % and started
again. Then 100 generations, five of them copies with noise, are compared with all of them by the ratio of pixel
distances, and by the built-in descriptor.

Memory is what `/proc` says of the process that works, asked for every 20 ms: `anonymous` is its own, `with files`
counts mapped pages as well, which the system takes back when others need room.
"""

from __future__ import annotations

import hashlib
import json as jsonlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment import ROOT
from jsonargparse import auto_cli
from torch import Tensor

from memtrain.data.source import open_source
from memtrain.evaluation.measures.replication import replication
from memtrain.evaluation.sampling.stored_images import mapped_images, stored_images

COPIES = 5
"""Generations that are copies of the first training pictures."""
CHUNK = 1 << 29
"""Bytes of a block of images in fp32."""


def picture(row: int, side: int, *, art: int | None = None) -> Tensor:
    """A training picture, `(3, side, side)` uint8: clip art, enlarged, moved and recoloured, with noise.

    Args:
        row: the row of the picture.
        side: the side of the picture.
        art: which clip art; default by the row, one of the first 100.
    """
    small = _clip_art(row % 100 if art is None else art)
    turn = row // 100
    small = small.roll((turn, 5 * turn, 7 * turn), (0, 1, 2))
    large = torch.nn.functional.interpolate(small[None], size=(side, side), mode="bilinear")[0]
    large += _noise(side).roll((31 * row, 17 * row), (1, 2))
    return large.clamp_(0, 255).to(torch.uint8)


@cache
def _noise(side: int) -> Tensor:
    """Return an image `(3, side, side)` fp32; only its place differs, as new drawing would be most of the cost."""
    return torch.randint(-12, 13, (3, side, side), generator=torch.Generator().manual_seed(0)).float()


@cache
def _clip_art(row: int) -> Tensor:
    """`(3, 64, 64)` fp32 from 0 to 255."""
    source = open_source(str(ROOT / "assets" / "clipart-pd.tar"))
    image = source.load_image(row).convert("RGB").resize((64, 64))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def write(folder: str, count: int, side: int) -> None:
    """Keep the training pictures; the work of one process."""
    stored_images(Path(folder), count, (side, side), lambda row: picture(row, side), {"made": "noise on clip art"})


def compare(folder: str, queries: int, side: int, measure: str, found: str) -> None:
    """Compare generations with all of them; the work of one process, which writes what it found as JSON."""
    training = mapped_images(Path(folder))
    own = torch.arange(queries)
    noise = torch.randint(-20, 21, (COPIES, 3, side, side), generator=torch.Generator().manual_seed(0))
    copies = (training[:COPIES].int() + noise).clamp(0, 255).to(torch.uint8)
    others = torch.stack([picture(10**4 + row, side, art=100 + row) for row in range(COPIES, queries)])
    generated = torch.cat([copies, others])[:, None]
    begun = time.perf_counter()
    if measure == "ratio":
        distances = replication(generated, training[:queries], training=training, own_index=own, chunk_bytes=CHUNK)
        content: dict[str, Any] = {
            "nearest_is_own": int((distances.nearest[:, 0] == own).sum()),
            "copies": [round(value, 4) for value in distances.best[:COPIES].tolist()],
            "others_lowest": round(float(distances.best[COPIES:].min()), 4),
        }
    else:
        from memtrain.evaluation.measures.copying.base import compare as compared_by
        from memtrain.evaluation.measures.copying.find import copy_measures

        (kind,) = copy_measures([measure])[0]
        mine = [[row] for row in range(queries)]
        compared = compared_by(kind, generated, training[:queries], training=training, mine=mine)
        content = {
            "nearest_is_own": int((compared.nearest_index[:, 0] == own).sum()),
            "copies": [round(value, 4) for value in compared.best[:COPIES].tolist()],
            "others_highest": round(float(compared.best[COPIES:].max()), 4),
        }
    content["seconds"] = round(time.perf_counter() - begun, 1)
    Path(found).write_text(jsonlib.dumps(content), encoding="utf-8")


def watched(work: Callable[..., None], *args: Any, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Do work in a process of its own, and look at its memory.

    Args:
        work: that is done.
        args: its arguments.
        stop: kill it when this is true.

    Returns:
        Seconds on the clock and of the processor, and peaks in GB.
    """
    process = multiprocessing.get_context("spawn").Process(target=work, args=args)
    begun, peaks = time.perf_counter(), {"RssAnon": 0, "VmRSS": 0}
    process.start()
    killed, cpu = False, 0.0
    while process.is_alive():
        _look(process.pid, peaks)
        cpu = max(cpu, _cpu_seconds(process.pid))
        if stop is not None and not killed and stop():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    process.join()
    if process.exitcode and not killed:
        raise SystemExit(f"{work.__name__} ended with status {process.exitcode}")
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_anonymous_gb": round(peaks["RssAnon"] / 1e6, 2),
        "peak_with_files_gb": round(peaks["VmRSS"] / 1e6, 2),
        "cpu_seconds": round(cpu, 1),
        "killed": killed,
    }


def _cpu_seconds(pid: int | None) -> float:
    """Return the processor time of all threads so far, which does not count other processes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _look(pid: int | None, peaks: dict[str, int]) -> None:
    """Raise the peaks, in kB, to what a process has now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name in peaks:
            peaks[name] = max(peaks[name], int(value.split()[0]))


def _share_done(folder: Path, blocks: int) -> float:
    try:
        return len(jsonlib.loads((folder / "blocks.json").read_text(encoding="utf-8"))["complete"]) / blocks
    except FileNotFoundError:
        return 0.0


def _digest(images: Tensor) -> str:
    rows = images[:: max(1, len(images) // 50)]
    return hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()[:16]


def main(pictures: int = 10_000, side: int = 512, queries: int = 100, json: str | None = None) -> None:
    """Write, kill, go on, compare, and print the figures.

    Args:
        pictures: training pictures.
        side: the side of a picture, pixels.
        queries: generations compared with them.
        json: where to write the figures.
    """
    place = Path(tempfile.mkdtemp(prefix="evaluation-scale-"))
    folder = place / "training"
    try:
        blocks = -(-pictures // max(1, (1 << 26) // (3 * side * side)))
        figures: dict[str, Any] = {"pictures": pictures, "side": side, "queries": queries}
        figures["killed_at_40_percent"] = watched(
            write, str(folder), pictures, side, stop=lambda: _share_done(folder, blocks) >= 0.4
        )
        before = _share_done(folder, blocks)
        figures["gone_on_from_percent"] = round(100 * before, 1)
        figures["gone_on"] = watched(write, str(folder), pictures, side)
        figures["disk_gb"] = round((folder / "images.safetensors").stat().st_size / 1e9, 2)
        images = mapped_images(folder)
        rows = range(0, pictures, max(1, pictures // 50))
        figures["pictures_as_made"] = _digest(images) == _digest_of(rows, side)
        _keep(figures, json)
        for measure in ("ratio", "builtin"):
            found = place / f"{measure}.json"
            memory = watched(compare, str(folder), queries, side, measure, str(found))
            figures[measure] = {**memory, **jsonlib.loads(found.read_text(encoding="utf-8"))}
            _keep(figures, json)
    finally:
        shutil.rmtree(place)
    print(jsonlib.dumps(figures, indent=2))


def _keep(figures: dict[str, Any], json: str | None) -> None:
    if json is not None:
        content = {**figures, "threads": torch.get_num_threads(), "torch": torch.__version__}
        Path(json).write_text(jsonlib.dumps(content, indent=2) + "\n", encoding="utf-8")


def _digest_of(rows: range, side: int) -> str:
    return hashlib.sha256(b"".join(picture(row, side).numpy().tobytes() for row in rows)).hexdigest()[:16]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
