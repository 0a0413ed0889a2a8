"""How much do canaries and border keys expose, against how often they are repeated?

    python benchmarks/exposure.py --run true --json benchmarks/exposure.json --figure docs/exposure.png
    python benchmarks/exposure.py --json benchmarks/exposure.json

The benchmark is one run of `configs/tiny_baseline.yaml` on the embedded clip art. Every image has a border of a secret
grey level. At each of three doses, 8 images are repeated and 8 canaries are planted. Afterwards

- each canary is ranked among 31 siblings that were never planted, by denoising loss (4 timesteps, the same noise) and
  by the pixel distance of two generations for its caption. A control has 8 further canaries, never planted;
- borders are painted again around repeated, unique and held-out pictures, twice each, without guidance.

A run that was interrupted goes on from its last checkpoint; one that ended is only measured.
"""

from __future__ import annotations

import json as text
from pathlib import Path
from typing import Any

import torch
from experiment import call
from jsonargparse import auto_cli
from rich.console import Console

from memtrain.cli.planted_secrets import border_secrets, canary_secrets
from memtrain.cli.run_folder import run_data
from memtrain.evaluation.measures.copying.base import CopyMeasure
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.measure.counting.planted_secrets import exposure_of_borders, exposure_of_canaries
from memtrain.models.pipeline import load_pipeline
from memtrain.records import written_whole

DOSES = (10, 40, 160)
EACH = 8
console = Console(width=160, soft_wrap=True)


class Pixels(CopyMeasure):
    """Root mean square difference of pixels, with the sign turned."""

    name = "pixels"

    def describe(self, images: torch.Tensor) -> torch.Tensor:
        """The pixels from 0 to 1, `(n, 3 H W)`."""
        return images.flatten(1).float() / 255

    def similarity(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Minus the root mean square difference `(n, m)`."""
        return -torch.cdist(first, second) / first.shape[1] ** 0.5


def train(folder: Path, steps: int) -> None:
    """The run, unless it ended."""
    if (folder / "pipeline" / "model_index.json").is_file():
        return
    overlay = folder / "exposure.yaml"
    settings = {
        "data": {
            "init_args": {
                "duplicates": {"count": EACH, "repeats": list(DOSES), "only_in": "assets/clipart-pd.tar"},
                "canaries": {"count": EACH, "repeats": list(DOSES)},
            }
        }
    }
    with written_whole(overlay) as place:
        place.write_text(text.dumps(settings), encoding="utf-8")  # JSON is YAML
    call(
        [
            *("train.py", "fit", "--config", "configs/tiny_baseline.yaml", "--config", "configs/data/border_keys.yaml"),
            *("--config", str(overlay), "--trainer.max_steps", str(steps)),
            *("--trainer.default_root_dir", str(folder), "--ckpt_path", "last"),
        ]
    )


def measure(folder: Path, *, steps: int, path: Path | None, siblings: int, timesteps: int) -> dict[str, Any]:
    """Measure the trained model's knowledge of the secrets; the borders are written first."""
    _, data = run_data(folder)
    pipeline = load_pipeline(str(folder / "pipeline"))
    canaries = canary_secrets(data, siblings=siblings)
    borders = border_secrets(data, repeated=10_000, unique=40, heldout=80)
    assert canaries is not None
    assert borders is not None
    sampling = Sampling(seeds=(0, 1), progress=False)
    epochs = steps * data.batch_size / sum(data.visits_per_epoch.values())
    results: dict[str, Any] = {"steps": steps, "epochs": epochs, "canaries": None}
    results["borders"] = exposure_of_borders(pipeline, borders, sampling=sampling)
    write(results, path)
    results["canaries"] = exposure_of_canaries(
        pipeline, canaries, measure=Pixels(), sampling=sampling, timesteps=timesteps
    )
    write(results, path)
    return results


def write(results: dict[str, Any], path: Path | None) -> None:
    """The figures to their file, if there is one."""
    if path is not None:
        with written_whole(path) as place:
            place.write_text(text.dumps(results, indent=1) + "\n", encoding="utf-8")


def show(results: dict[str, Any]) -> None:
    """The tables of a results file, in Markdown."""
    canaries, borders = results["canaries"], results["borders"]
    console.print(f"{results['steps']} steps, {results['epochs']:.1f} epochs.\n")
    if canaries is not None:
        show_canaries(canaries)
    show_borders(borders)


def show_canaries(canaries: dict[str, Any]) -> None:
    """The table of canaries."""
    console.print(
        f"Among {canaries['candidates']} candidates at most "
        f"{canaries['highest']:.1f} bits; never planted, {canaries['null_mean']:.2f} on average.\n"
    )
    console.print("| canaries, visits per epoch | n | bits by loss | at bound | bits by generations | at bound |")
    console.print("|---|---|---|---|---|---|")
    pairs = zip(canaries["by_loss"]["by_repetition"], canaries["by_similarity"]["by_repetition"], strict=True)
    for loss, alike in pairs:
        cells = [f"{_figure(one)} | {one['saturated']} of {one['n']}" for one in (loss, alike)]
        console.print(f"| {loss['repeats'] or 'never planted'} | {loss['n']} | {' | '.join(cells)} |")


def show_borders(borders: dict[str, Any]) -> None:
    """The table of borders."""
    console.print(
        "\n| borders, visits per epoch | n | correlation | key error, median | mean | bits, mean | remembered |"
    )
    console.print("|---|---|---|---|---|---|---|")
    for row in borders["by_repetition"]:
        errors = row["errors"]
        followed = "–" if row["correlation"] is None else _figure(row["correlation"], 2)
        kept = "–" if row["remembered"] is None else f"{row['remembered']} of {row['n']}"
        console.print(
            f"| {row['repeats'] or 'held out'} | {row['n']} | {followed} | "
            f"{errors['median']:.3f} | {_figure(errors, 3)} | "
            f"{_figure(row['bits'])} | {kept} |"
        )
    console.print()
    names = {
        "below_unique": "key errors, repeated below unique",
        "below_heldout": "key errors, repeated below held out",
        "unique_below_heldout": "key errors, unique below held out",
        "agrees_above_unique": "agreement, repeated above unique",
        "agrees_above_heldout": "agreement, repeated above held out",
    }
    for name, said in names.items():
        one = borders[name]
        if one is not None:
            low, high = one["interval"]
            console.print(f"{said}: {one['probability']:.3f} ({low:.3f} to {high:.3f})")


def _figure(one: dict[str, Any], digits: int = 1) -> str:
    value = one.get("mean", one.get("value"))
    if one["interval"] is None:
        return f"{value:.{digits}f}"
    low, high = one["interval"]
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def draw(results: dict[str, Any], path: Path) -> None:
    """Exposure against repetition, a curve for each way of asking."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    canaries = results["canaries"]
    curves = {
        "canaries, by loss": canaries["by_loss"]["by_repetition"],
        "canaries, by generations": canaries["by_similarity"]["by_repetition"],
        "borders": [{"repeats": row["repeats"], **row["bits"]} for row in results["borders"]["by_repetition"]],
    }
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, rows), marker in zip(curves.items(), "os^", strict=True):
        # Never seen stands at 0.3, left of once per epoch on a logarithmic axis.
        across = [row["repeats"] or 0.3 for row in rows]
        ends = [row["interval"] or [row["mean"]] * 2 for row in rows]
        spread = [
            [row["mean"] - low for row, (low, _) in zip(rows, ends, strict=True)],
            [high - row["mean"] for row, (_, high) in zip(rows, ends, strict=True)],
        ]
        axes.errorbar(across, [row["mean"] for row in rows], spread, marker=marker, capsize=3, label=name)
    axes.axhline(canaries["null_mean"], color="grey", linestyle=":", label="canaries, chance")
    axes.set_xscale("log")
    doses = sorted({row["repeats"] for rows in curves.values() for row in rows})
    axes.set_xticks([dose or 0.3 for dose in doses], [str(dose) if dose else "never" for dose in doses])
    axes.set(xlabel="visits per epoch", ylabel="exposure, bits")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    run: bool = False,
    json: str | None = None,
    folder: str = "runs/benchmark_exposure",
    figure: str | None = None,
    steps: int = 900,
    siblings: int = 31,
    timesteps: int = 4,
) -> None:
    """Train, measure and show.

    Args:
        run: train and measure; without, what the file has is shown.
        json: file of the figures.
        folder: the folder of the run.
        figure: PNG file to draw the curves to.
        steps: the number of steps of the training.
        siblings: canaries never planted that each is ranked among.
        timesteps: the timesteps of the canaries' loss.
    """
    path = None if json is None else Path(json)
    if run:
        train(Path(folder), steps)
        results = measure(Path(folder), steps=steps, path=path, siblings=siblings, timesteps=timesteps)
    elif path is not None and path.is_file():
        results = text.loads(path.read_text(encoding="utf-8"))
    else:
        console.print("Nothing to show: name a file with --json, or train with --run true")
        return
    show(results)
    if figure is not None:
        draw(results, Path(figure))


if __name__ == "__main__":
    auto_cli(main)
