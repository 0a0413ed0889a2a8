"""Everything that needs a GPU, in one command of at most 20 minutes, most important first.

    python benchmarks/gpu.py --json benchmarks/gpu.json --markdown gpu.md
    python benchmarks/gpu.py --parts "[sd15, step]"
    python benchmarks/gpu.py --smoke        (tiny sizes on the CPU, to see that the command works)

Each part runs in a process of its own with a limit of its own, so that no crash, lack of memory or hang takes another
along. Its figures are in the JSON file as soon as it ends, the failed ones with what was measured before the failure.
A part that does not fit into what is left of the budget is skipped. Models have random weights; nothing is downloaded.
"""

from __future__ import annotations

import json as jsons
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_packages import require_packages

ROOT = Path(__file__).parents[1]
PARTS = {
    "default_run": (60, 200),
    "training_sd15": (120, 420),
    "training_sdxl": (120, 420),
    "sd15": (60, 240),
    "overhead": (60, 240),
    "step": (60, 200),
    "guard": (60, 200),
    "conformance": (30, 180),
    "sampling": (40, 150),
    "nemo": (40, 150),
}
"""Seconds that have to be left for a part to begin, and seconds after which it is ended."""
TAIL = 25
"""Lines of its log that a failed part keeps."""


def run_part(name: str, folder: Path, *, limit: float, smoke: bool) -> dict[str, Any]:
    """Run one part in its own process.

    Args:
        name: the name of a part in `PARTS`.
        folder: the folder for what the parts make, and their logs.
        limit: seconds after which it is ended, with all processes that it started.
        smoke: tiny sizes on the CPU.

    Returns:
        `status`, `seconds`, `figures` and, if it failed, `error`.
    """
    file, log = folder / f"{name}.figures.json", folder / "logs" / f"{name}.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_part.py"), name, str(file), str(folder)]
    start, status = time.perf_counter(), "ok"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603
            [*command, *(["--smoke"] if smoke else [])],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"},
            start_new_session=True,
        )
        try:
            if process.wait(timeout=limit):
                status = "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found: dict[str, Any] = {"status": status, "seconds": round(time.perf_counter() - start, 1)}
    if status != "ok":
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        ended = f"ended after {limit:.0f} s" if status == "timed out" else f"ended with {process.returncode}"
        found["error"] = "\n".join([ended, *tail])
    found["figures"] = jsons.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def describe(device: str) -> dict[str, Any]:
    """The machine and the packages."""
    import diffusers
    import lightning
    import torch
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU (smoke run)",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "lightning": lightning.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def lines(parts: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Part, status, seconds and the figures in words; one line for each measurement within a part."""
    found = []
    for name, part in parts.items():
        plain = {key: value for key, value in part["figures"].items() if not isinstance(value, dict)}
        seconds = f"{part['seconds']:.0f}" if part["seconds"] else ""
        found.append((name, part["status"], seconds, _said(plain) or part.get("error", "").split("\n")[0]))
        for key, value in part["figures"].items():
            if isinstance(value, dict):
                status = "failed" if "error" in value or value.get("passed") is False else "ok"
                spent = value.get("seconds_in_all")
                rest = {one: figure for one, figure in value.items() if one != "seconds_in_all"}
                found.append((f"{name}: {key}", status, f"{spent:.0f}" if spent else "", _said(rest)))
    return found


def _said(figures: dict[str, Any]) -> str:
    words = []
    for name, value in figures.items():
        number = isinstance(value, float)
        words.append(f"{name.replace('_', ' ')} {f'{value:.4g}' if number else _short(value)}")
    return "; ".join(words)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in value) + "]"
    return str(value).split("\n")[0][:160]


def table(results: dict[str, Any]) -> str:
    """The Markdown table."""
    said = "; ".join(f"{name} {value}" for name, value in results["environment"].items())
    rows = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines(results["parts"])]
    return "\n".join([said, "", "| part | status | s | figures |", "|---|---|---|---|", *rows]) + "\n"


def write(results: dict[str, Any], json: Path, markdown: str | None) -> None:
    """Write both files, the JSON file in one go."""
    json.parent.mkdir(parents=True, exist_ok=True)
    waiting = json.with_suffix(".writing")
    waiting.write_text(jsons.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(waiting, json)
    if markdown:
        Path(markdown).write_text(table(results), encoding="utf-8")


def main(
    *,
    parts: list[str] | None = None,
    json: str | None = None,
    markdown: str | None = None,
    smoke: bool = False,
    budget: float = 1200,
    folder: str = "runs/gpu",
    scripts: str | None = None,
) -> None:
    """Run the parts and print a table.

    Args:
        parts: names of parts, in this order; default all of default_run, training_sd15, training_sdxl, sd15,
            overhead, step, guard, conformance, sampling, nemo.
        json: file for the figures; parts that it holds already, from the same environment, stay there.
        markdown: file for a table.
        smoke: tiny sizes, on the CPU.
        budget: seconds for all parts together.
        folder: the folder for what the parts make, and their logs.
        scripts: diffusers' folder of text-to-image examples, without which the parts `training_*` are skipped.
    """
    start = time.perf_counter()
    chosen = list(PARTS) if parts is None else parts
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"No part is called {unknown[0]!r}. Expected some of: {', '.join(PARTS)}.")
    import torch

    if not smoke and not torch.cuda.is_available():
        sys.exit("This machine has no GPU that torch can use. Expected one; `--smoke` tries the command on the CPU.")
    place = Path(folder).resolve()
    for name in chosen:
        for run in {"default_run": ["run_tiny"], "sd15": ["run_sd15"], "step": []}.get(name, []):
            shutil.rmtree(place / run, ignore_errors=True)
    (place / "logs").mkdir(parents=True, exist_ok=True)
    if scripts is not None:
        os.environ["DIFFUSERS_SCRIPTS"] = str(Path(scripts).resolve())
    file = Path(json) if json else place / "gpu.json"
    results: dict[str, Any] = {"environment": describe("cpu" if smoke else "cuda"), "parts": {}}
    if file.is_file():
        before = jsons.loads(file.read_text(encoding="utf-8"))
        if before.get("environment") == results["environment"]:
            results["parts"] = before["parts"]
    for name in chosen:
        least, most = PARTS[name]
        if name.startswith("training_") and scripts is None:
            error = "it compares with diffusers' scripts: name their folder with --scripts"
            results["parts"][name] = {"status": "skipped", "seconds": 0, "figures": {}, "error": error}
            print(f"{name}: skipped: {error}", flush=True)
            continue
        left = budget - (time.perf_counter() - start)
        if left < (1 if smoke else least):
            error = f"{left:.0f} s of the budget are left, and it needs {least}"
            results["parts"][name] = {"status": "skipped", "seconds": 0, "figures": {}, "error": error}
        else:
            print(f"{name} ...", flush=True)
            results["parts"][name] = run_part(name, place, limit=min(left, most), smoke=smoke)
        part = results["parts"][name]
        print(f"{name}: {part['status']}, {part['seconds']} s", part.get("error", ""), sep="\n", flush=True)
        write(results, file, markdown)
    print(table(results))
    ran = [name for name in chosen if scripts is not None or not name.startswith("training_")]
    if any(results["parts"][name]["status"] != "ok" for name in ran):
        sys.exit(1)


if __name__ == "__main__":
    require_packages()
    from jsonargparse import auto_cli

    # jsonargparse wants a value after the name of a bool; here it may be left out.
    words = [*sys.argv[1:], ""]
    bare = [i for i, word in enumerate(words) if word == "--smoke" and words[i + 1] not in ("true", "false")]
    given = ["--smoke=true" if i in bare else word for i, word in enumerate(words[:-1])]
    auto_cli(main, as_positional=False, args=given)
