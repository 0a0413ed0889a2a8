"""Pictures that are present as many files under names of their own: what is reproduced, with and without memtrain.

    python benchmarks/copies.py --forms "[exact, light]" --rows "[baseline, recommended]" --seeds "[0]" --jobs 2

Forms are in `copies_data.py`, the judge, who knows the truth and shares nothing with the run but the measure of
distance, in `copies_judge.py`. `--sscd file.onnx` lets a copy detector judge beside. Figures are added to the JSON
file as soon as a run is finished; what is in there is not run again, and a run that was interrupted goes on from its
last checkpoint. Rows:

- `baseline`: plain fine-tuning, `configs/tiny_baseline.yaml`. Its held-out split is by the true families.
- `recommended`: `configs/tiny.yaml`, which finds the families itself.
- `entropy`: plain fine-tuning, flags by attention entropy alone, whose sites are learnt from canaries.
- `lora`, `lora_recommended`: the first two with adapters of rank 16 in place of all weights.
- `lora_t_lora`, `lora_logit_normal`, `lora_u_shaped`: `lora` with what is published against overfitting, nothing else.
"""

from __future__ import annotations

import csv
import json as text
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow.parquet as pq
import torch
from copies_data import DOSES, FORMS, PER_DOSE, CopiedData, make
from copies_judge import judge
from experiment import ROOT, CommandError, call
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from memtrain.families.table import Families
from memtrain.functional.ranking import auroc, proportion_interval

console = Console(width=240, soft_wrap=True)
BASELINE = ("--config", "configs/tiny_baseline.yaml", "--config", "benchmarks/copies_baseline.yaml")
LORA = ("--config", "benchmarks/copies_lora.yaml")
ROWS: dict[str, Sequence[str]] = {
    "baseline": BASELINE,
    "recommended": ["--config", "configs/tiny.yaml"],
    "lora": [*BASELINE, *LORA],
    "lora_recommended": ["--config", "configs/tiny.yaml", *LORA],
    "lora_t_lora": [*BASELINE, *LORA, "--model.init_args.lora", "{rank: 16, timestep_rank: {minimum: 8}}"],
    "lora_logit_normal": [*BASELINE, *LORA, "--config", "configs/objective/logit_normal.yaml"],
    "lora_u_shaped": [*BASELINE, *LORA, "--config", "configs/objective/u_shaped.yaml"],
    "entropy": [
        *("--config", "configs/tiny_baseline.yaml", "--config", "configs/signals/attention_entropy.yaml"),
        *("--config", "configs/data/canaries.yaml"),
    ],
}
DOSE_STEPS = 750
EVALUATION = ("--detectors", "none", "--kid", "false", "--unique_prompts", "30", "--max_prompts", "60")
_lock = Lock()


def run(form: str, row: str, seed: int, *, folder: Path, sscd: Path | None) -> dict[str, Any]:
    """Train, judge and evaluate one run.

    Raises:
        CommandError: if training or evaluation fails.
    """
    data = make(form, folder / "data", seed=seed)
    place, log = folder / f"{form}-{row}-{seed}", folder / f"{form}-{row}-{seed}.log"
    steps = FORMS[form].steps if form in FORMS else DOSE_STEPS
    families = "auto" if row.endswith("recommended") else str(data.families)
    options = {
        "--seed_everything": seed,
        "--trainer.max_steps": steps,
        "--trainer.default_root_dir": place,
        "--data.init_args.path": data.path,
        "--data.init_args.duplicates.count": 0,
        "--data.init_args.families": families,
        "--data.init_args.scan.folder": place / "families",
    }
    training = [str(word) for pair in options.items() for word in pair]
    if not (place / "pipeline" / "model_index.json").is_file():
        began = time.monotonic()
        call(["train.py", "fit", *ROWS[row], *training, "--ckpt_path", "last"], log=log, threads=1)
        (place / "seconds.json").write_text(text.dumps(time.monotonic() - began), encoding="utf-8")
    judged = place / "judged.json"
    if not judged.is_file():
        judged.write_text(text.dumps(judge(place / "pipeline", data, sscd=sscd)), encoding="utf-8")
    results = place / "evaluation" / "results.json"
    if row != "entropy" and not results.is_file():
        call(["evaluate.py", "--run", str(place), *EVALUATION], log=log, threads=1)
    figures = {"form": form, "steps": steps, **text.loads(judged.read_text(encoding="utf-8"))}
    figures |= flag_figures(place, data)
    if results.is_file():
        content = text.loads(results.read_text(encoding="utf-8"))
        figures["verdict"] = content["verdict"]
        figures["heldout_loss"] = content["quality"]["heldout_loss"]
    figures["validation_loss"] = validation_losses(place)
    figures["seconds"] = text.loads((place / "seconds.json").read_text(encoding="utf-8"))
    return figures


def validation_losses(place: Path) -> dict[str, float]:
    """Held-out loss by step, as the training logged it."""
    with (place / "logs" / "version_0" / "metrics.csv").open(encoding="utf-8") as file:
        return {row["step"]: float(row["heldout/loss"]) for row in csv.DictReader(file) if row["heldout/loss"]}


def flag_figures(place: Path, data: CopiedData) -> dict[str, Any]:
    """Flags and found families against the truth."""
    evidence = pq.read_table(place / "records" / "evidence.parquet").to_pylist()
    flagged = {row["key"]: row["first_flagged_step"] for row in evidence if row["flagged"]}
    scores = {row["key"]: row["score"] for row in evidence}
    steps = [
        min((flagged[key] for key in members if flagged.get(key) is not None), default=None)
        for members in data.planted.values()
    ]
    planted = [max(scores.get(key, 0.0) for key in members) for members in data.planted.values()]
    # A picture that shares its caption is one of several that the caption brings back.
    captions = Families.read(data.families)
    alone = [key for key in data.unique if len(captions.caption_members(captions.caption(key))) == 1]
    unique = [scores[key] for key in alone if key in scores]
    truth = torch.tensor([1] * len(planted) + [0] * len(unique))
    found: dict[str, Any] = {
        "planted_flagged": sum(step is not None for step in steps),
        "flag_steps": steps,
        "unique_flagged": sum(key in flagged for key in alone),
        "unique_trained": len(unique),
        "sharing_a_caption_flagged": sum(key in flagged for key in data.unique) - sum(key in flagged for key in alone),
        "sharing_a_caption": len(data.unique) - len(alone),
        "auroc": float(auroc(torch.tensor([*planted, *unique]), truth.bool())),
    }
    table = place / "records" / "families.parquet"
    if table.is_file():
        found["families"] = pair_figures(Families.read(table), Families.read(data.families), data)
    for scan in (place / "families").glob("*/scan.json"):
        found["scan"] = text.loads(scan.read_text(encoding="utf-8"))
    return found


def pair_figures(found: Families, true: Families, data: CopiedData) -> dict[str, Any]:
    """Precision and recall of pairs of files that are one picture."""
    keys = [key for members in data.planted.values() for key in members] + data.unique

    def pairs(name: Any) -> int:
        count: dict[Any, int] = {}
        for key in keys:
            count[name(key)] = count.get(name(key), 0) + 1
        return sum(n * (n - 1) // 2 for n in count.values())

    both = pairs(lambda key: (found.picture(key), true.picture(key)))
    said, there = pairs(found.picture), pairs(true.picture)
    return {"pairs": there, "precision": both / said if said else None, "recall": both / there if there else None}


def show(content: Mapping[str, Any]) -> None:
    """One line for every form and row, seeds together."""
    table = Table(title="Copies under names of their own", title_justify="left")
    for name in ("form", "row", "seeds", "planted reproduced", "unique reproduced", "held-out loss", "planted flagged"):
        table.add_column(name)
    for name in ("flag step, median", "unique flagged", "AUROC", "pairs: precision, recall", "cleared"):
        table.add_column(name)
    for name, seeds in sorted(content["runs"].items()):
        runs = list(seeds.values())
        form, row = name.split("/")

        def total(*path: str, runs: list[Any] = runs) -> int:
            values = []
            for one in runs:
                for part in path:
                    one = one[part]
                values.append(one)
            return sum(values)

        k, n = total("planted", "reproduced"), total("planted", "asked")
        low, high = proportion_interval(k, n)
        steps = sorted(step for one in runs for step in one["flag_steps"] if step is not None)
        families = runs[0].get("families") or {}
        table.add_row(
            form,
            row,
            str(len(runs)),
            f"{k} of {n} ({low:.0%} to {high:.0%})",
            f"{total('unique', 'reproduced')} of {total('unique', 'asked')}",
            ", ".join(f"{list(one['validation_loss'].values())[-1]:.4f}" for one in runs),
            f"{total('planted_flagged')} of {n}",
            str(steps[len(steps) // 2]) if steps else "",
            f"{total('unique_flagged')} of {total('unique_trained')}",
            ", ".join(f"{one['auroc']:.3f}" for one in runs if one["auroc"] is not None),
            "" if families.get("precision") is None else f"{families['precision']:.3f}, {families['recall']:.3f}",
            ", ".join(str(one.get("verdict", {}).get("cleared", "")) for one in runs),
        )
    console.print(table, markup=False)


def copies(
    forms: tuple[str, ...] = (*FORMS,),
    rows: tuple[str, ...] = ("baseline", "recommended", "entropy"),
    seeds: tuple[int, ...] = (),
    jobs: int = 1,
    sscd: str | None = None,
    folder: str = "runs/copies",
    json: str = "benchmarks/copies.json",
) -> None:
    """Run what is missing, and show the figures.

    Args:
        forms: the forms of the data; `dose` is the curve of doses.
        rows: the rows of the table.
        seeds: the seeds of the choice of planted pictures and of the training; without seeds nothing is run.
        jobs: runs at a time, one thread each.
        sscd: ONNX file of a copy detector that takes uint8 images.
        folder: the folder of data and runs.
        json: file of the figures.
    """
    place, path = (ROOT / folder).resolve(), ROOT / json
    content: dict[str, Any] = {"runs": {}}
    if path.is_file():
        content |= text.loads(path.read_text(encoding="utf-8"))
    content["doses"] = {"files": list(DOSES), "pictures_each": PER_DOSE}
    failed = []

    def one(form: str, row: str, seed: int) -> None:
        if str(seed) in content["runs"].get(f"{form}/{row}", {}):
            return
        try:
            figures = run(form, row, seed, folder=place, sscd=Path(sscd) if sscd else None)
        except CommandError as error:
            failed.append(f"{form}/{row}/{seed}: {error}")
            return
        with _lock:
            content["runs"].setdefault(f"{form}/{row}", {})[str(seed)] = figures
            path.write_text(text.dumps(content, indent=1) + "\n", encoding="utf-8")
            console.print(f"{form}, {row}, seed {seed}: done", markup=False)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda names: one(*names), [(f, r, s) for s in seeds for r in rows for f in forms]))
    if content["runs"]:
        show(content)
    for line in failed:
        console.print(line, markup=False)


if __name__ == "__main__":
    auto_cli(copies)
