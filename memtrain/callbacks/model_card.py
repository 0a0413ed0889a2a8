"""The model card of an export, in the format of the hub: its training, its data and its memorization.

The card is `README.md` in the exported pipeline folder and next to LoRA weights. It holds YAML front matter, an example
of use, training settings, the findings of the monitor, the mitigations, and the limits of these findings. `memtrain
measure` writes its results into the same card, between two comments. It does not change a card without these comments.
The publisher chooses the license. The card shows counts of the data, but no caption, no key and no path. Names are
escaped, so that no name is read as Markdown or HTML. Source: huggingface.co/docs/hub/model-cards for the front matter.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import getdoc
from pathlib import Path
from typing import Any

import yaml

from memtrain.evidence.promise import promised_in_short
from memtrain.evidence.verdict import verdict
from memtrain.files.shipped import at_hand
from memtrain.monitoring.data_protocol import by_key, known_samples
from memtrain.monitoring.mitigation import Mitigation
from memtrain.records import written_whole

EDITED = "edited copies of training samples, in the place of held-out ones"
"""Name of the held-out samples if no picture was held out."""
CARD = "README.md"
BEGIN, END = "<!-- memtrain: evaluation -->", "<!-- memtrain: end of evaluation -->"
"""Comments around the results of an evaluation, so that the next evaluation can replace them."""
NOT_EVALUATED = "It was not evaluated. No images were sampled to test whether the model gives training images back."
LORA_FILE = "pytorch_lora_weights.safetensors"
LIMITS = (
    "A flag says that the model knows a training picture much better than similar pictures that it never saw. It is "
    "statistical. Pictures that are not memorized are flagged at the stated rate.",
    "A picture without a flag is not proven to be safe. It may have had too few visits to be judged, and the model may "
    "have learnt its details or its style without the whole picture.",
    "Sampling with some prompts and seeds can show that a model gives a picture back. It cannot show that no prompt "
    "does. Pictures that the base model had memorized before are not tested.",
)
"""Limits that every card states."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts of a card.

    Attributes:
        base_model: hub name or folder of the base model.
        kind: class of the pipeline.
        lora: options of the adapters; None for full fine-tuning.
        data: counts by the name of what they count.
        settings: settings of the training by name.
        calibration: content of `records/calibration.json`; None without a monitor.
        mitigations: the name of each mitigation, with one line of text.
    """

    base_model: str
    kind: str
    lora: Any = None
    data: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    mitigations: Sequence[tuple[str, str]] = ()


def write_cards(trainer: Any, module: Any, folder: Path) -> None:
    """Write the card to the exported folder, and next to LoRA weights in the run folder, if these exist.

    Args:
        trainer: the trainer at the end of training.
        module: the trained module.
        folder: the folder of the exported pipeline.
    """
    facts, root = facts_of(trainer, module), Path(trainer.default_root_dir)
    for place, name in ((folder, "model_index.json"), (root, LORA_FILE)):
        if (place / name).is_file():
            with written_whole(place / CARD) as unfinished:
                unfinished.write_text(card(facts, adapters=name == LORA_FILE), encoding="utf-8")


def facts_of(trainer: Any, module: Any) -> CardFacts:
    """Collect the facts from a trainer and its module."""
    data, root = getattr(trainer, "datamodule", None), Path(trainer.default_root_dir)
    parts: Any = getattr(module, "parts", None)
    batch = getattr(data, "batch_size", None)
    families = getattr(data, "families", None)
    keys, copied = list(by_key(data, "visits_per_epoch")), by_key(data, "copied_from")
    counts = {
        "training samples": len(known_samples(data, "train")),
        "pictures": 0 if families is None else len({families.picture(key) for key in keys}),
        "held-out samples, not trained on": len(known_samples(data, "heldout")) if not copied else 0,
        EDITED: len(copied),
    }
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    schedule = getattr(module, "schedule", None)
    group = {} if optimizer is None else optimizer.param_groups[0]
    accumulated = trainer.world_size * trainer.accumulate_grad_batches
    settings = {
        "steps": trainer.global_step,
        "samples in a step": None if batch is None else batch * accumulated,
        "resolution": getattr(data, "resolution", None),
        "learning rate": group.get("initial_lr", group.get("lr")),
        "schedule": schedule if isinstance(schedule, str) else getattr(schedule, "__qualname__", None),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "precision": trainer.precision,
        "prediction": getattr(module, "prediction_type", None),
        "averaged weights": getattr(module, "ema", None) is not None,
    }
    file = root / "records" / "calibration.json"
    # The file of an earlier run does not describe a run without a monitor.
    watched = file.is_file() and any(getattr(one, "updates_at_the_end", False) for one in trainer.callbacks)
    return CardFacts(
        base_model=str(getattr(module, "pretrained", "")),
        kind=type(parts.pipeline).__name__ if parts is not None else "DiffusionPipeline",
        lora=getattr(module, "lora", None),
        data={name: count for name, count in counts.items() if count},
        settings={name: value for name, value in settings.items() if value is not None},
        calibration=json.loads(file.read_text(encoding="utf-8")) if watched else None,
        mitigations=[_described(one) for one in trainer.callbacks if isinstance(one, Mitigation)],
    )


def _described(mitigation: Mitigation) -> tuple[str, str]:
    return type(mitigation).__name__, (getdoc(type(mitigation)) or "").splitlines()[0]


def card(facts: CardFacts, *, adapters: bool = False) -> str:
    """Return the Markdown of a card.

    Args:
        facts: the facts of the card.
        adapters: whether the card stands next to LoRA weights, and not in a pipeline folder.
    """
    local = not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", facts.base_model) or Path(at_hand(facts.base_model)).exists()
    name = Path(facts.base_model).name if local else facts.base_model
    tags = ["text-to-image", "diffusers", "memtrain", *(["lora"] if facts.lora is not None else [])]
    front: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}
    if not local:
        front = {"base_model": facts.base_model, **front}
    what = "all weights of the denoiser" if facts.lora is None else f"LoRA adapters of rank {facts.lora.rank}"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "# license: choose one; the licenses of the base model and of the images may bind you",
        "---",
        "",
        f"# Fine-tuned {escaped(name) or 'model'}",
        "",
        f"{escaped(facts.kind)}, fine-tuned from {escaped(name) or 'a base model'}: {what}. Training was watched for "
        "memorized images by memtrain."
        if facts.calibration is not None
        else f"{escaped(facts.kind)}, fine-tuned from {escaped(name) or 'a base model'}: {what}.",
        "",
        "## Use",
        "",
        *_use(facts, adapters=adapters, base=facts.base_model if not local else "BASE_MODEL"),
        "## Training",
        "",
        *_table({**facts.data, **facts.settings, **_adapter_rows(facts.lora)}),
        "",
        "## Memorization",
        "",
        *_memorization(facts),
        BEGIN,
        NOT_EVALUATED,
        END,
        "",
        "### What this does not prove",
        "",
        *(f"- {limit}" for limit in LIMITS),
        "",
    ]
    return "\n".join(lines)


def _use(facts: CardFacts, *, adapters: bool, base: str) -> list[str]:
    first = "from diffusers import DiffusionPipeline"
    if adapters:
        code = [first, "", f"pipe = DiffusionPipeline.from_pretrained({base!r})", "pipe.load_lora_weights('FOLDER')"]
    else:
        code = [first, "", "pipe = DiffusionPipeline.from_pretrained('FOLDER')"]
    return ["```python", *code, "image = pipe('a prompt').images[0]", "```", ""]


def _adapter_rows(lora: Any) -> dict[str, Any]:
    if lora is None:
        return {}
    alpha = getattr(lora, "alpha", None)
    return {"adapter rank": lora.rank, "adapter alpha": lora.rank if alpha is None else alpha}


def _table(rows: Mapping[str, Any]) -> list[str]:
    lines = [f"| {escaped(str(name))} | {escaped(_said(value))} |" for name, value in rows.items()]
    return ["| | |", "|---|---|", *lines]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _memorization(facts: CardFacts) -> list[str]:
    """Return the lines about the monitor's findings and the mitigations."""
    figures = facts.calibration
    if figures is None:
        return ["Training was not watched for memorization.", ""]
    pictures, flagged = figures["pictures"], figures["pictures_flagged"]
    held, threshold = figures["heldout"], figures["threshold"]
    basis = f"{held} held-out pictures" if held is not None else "the bulk of the training pictures"
    if EDITED in facts.data:
        basis = f"{held} edited copies of the training pictures"
    rows = {
        "pictures flagged as memorized": flagged,
        "training pictures": pictures,
        "share": f"{100 * flagged / pictures:.2f} %" if pictures else "unknown",
        "false-positive rate that was promised": promised_in_short(figures),
        "the threshold rests on": basis if threshold is not None else "no data (there was no threshold)",
        "samples with too few visits to be judged": figures["samples"] - figures["judged"],
    }
    if figures["canaries"]:
        rows["canaries flagged (samples known to be repeated)"] = (
            f"{figures['canaries_flagged']} of {figures['canaries']}"
        )
    done = [f"- {escaped(name)}: {escaped(line)}" for name, line in facts.mitigations]
    return [
        *_table(rows),
        "",
        escaped(verdict(figures)).replace("\n", "\n\n"),
        "",
        *(["Mitigations during training:", "", *done] if done else ["No mitigation was used in training."]),
        "",
    ]


def evaluation_text(results: Mapping[str, Any]) -> str:
    """Return the text about an evaluation, from the content of `results.json`."""
    replication, sampling = results["replication"], results["sampling"]
    cleared = results["verdict"].get("cleared")
    said = {
        False: "the model gives training images back",
        True: "the model gives back no more of them than chance explains",
        None: "the model cannot be judged on this evidence",
    }
    lines = [
        "### Evaluation",
        "",
        f"Sampled with captions of its training images: {said[cleared]}.",
        "",
        escaped(str(results["verdict"]["text"])),
        "",
        "| captions of | asked | given back, by the ratio of pixel distances |",
        "|---|---|---|",
    ]
    for name, group in replication["groups"].items():
        lines.append(f"| {escaped(name.replace('_', ' '))} | {group['n']} | {group['reproduced']} |")
    seeds = len(sampling["seeds"])
    lines += ["", f"{seeds} images of each caption, {sampling['steps']} steps, guidance {sampling['guidance_scale']}."]
    loss = (results.get("quality") or {}).get("heldout_loss")
    if loss is not None:
        lines.append(f"Denoising loss of held-out images: {loss:.4f}.")
    return "\n".join(lines)


def add_evaluation(run: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write the results of an evaluation into the cards of a run.

    Args:
        run: the run folder.
        results: the content of `results.json`.

    Returns:
        The changed cards. A card without the comments :data:`BEGIN` and :data:`END` is not changed.
    """
    changed = []
    for path in (run / "pipeline" / CARD, run / CARD):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if begin and end:
            with written_whole(path) as unfinished:
                new = f"{before}{BEGIN}\n{evaluation_text(results)}\n{END}{after}"
                unfinished.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def escaped(text: str) -> str:
    """Escape a text, so that Markdown and HTML show it as it is."""
    plain = html.escape("".join(one if one.isprintable() or one == "\n" else " " for one in text), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", plain)
