"""Runs one part of `gpu.py` in this process: name, file of its figures, folder, and perhaps `--smoke`."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(name: str, file: str, folder: str, *smoke: str) -> None:
    """Run a part; it ends with an error if it, or an attempt in it, failed.

    Args:
        name: the name of the part.
        file: JSON file for its figures.
        folder: the folder for what the parts make.
        smoke: `--smoke` or nothing.
    """
    here = Path(__file__).parent
    paths = [str(here.parent), os.environ.get("PYTHONPATH", ""), str(here)]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    sys.path.insert(0, str(here.parent))
    # Of matrix products that have to come out the same twice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import gpu_guard
    import gpu_model
    import gpu_scripts
    import gpu_training
    from gpu_shapes import Part

    part = Part(Path(file), Path(folder), smoke=bool(smoke))
    module = next(module for module in (gpu_guard, gpu_scripts, gpu_training, gpu_model) if hasattr(module, name))
    getattr(module, name)(part)
    figures = [one for one in part.figures.values() if isinstance(one, dict)]
    failed = part.failures() + [f"{len([f for f in figures if f.get('passed') is False])} check(s) did not pass"] * any(
        one.get("passed") is False for one in figures
    )
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
