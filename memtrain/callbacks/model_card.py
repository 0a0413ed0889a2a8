"""The model card of an export: what was trained on what, and what is known of memorization, as the hub reads it.

What: `README.md` in the exported pipeline folder, and beside LoRA weights: YAML front matter, how to use it, training
settings, what the monitor found, what was done, and what that does not prove. `memtrain measure` puts what it measured
into the same card, between two comments; a card without these comments is left alone. The license is for whoever
publishes to choose. Nothing of the data stands in it but counts: no caption, no key and no path. Names are escaped, so
that none is read as Markdown or HTML. Source: the front matter is that of huggingface.co/docs/hub/model-cards.
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
"""What is counted where no picture was held out."""
CARD = "README.md"
BEGIN, END = "<!-- memtrain: evaluation -->", "<!-- memtrain: end of evaluation -->"
"""Around what an evaluation says, so that it can be exchanged."""
NOT_EVALUATED = "It was not evaluated: whether the model gives training images back was not tested by sampling."
LORA_FILE = "pytorch_lora_weights.safetensors"
LIMITS = (
    "A flag says that training came to know a picture much better than pictures like it that it never saw. It is "
    "statistical: at the stated rate pictures are flagged that are not memorized.",
    "A picture without a flag is not proven to be safe: it may have had too few visits to be judged, and details or a "
    "style may be learnt without the whole picture.",
    "Sampling with some prompts and seeds can show that a model gives a picture back, and cannot show that no prompt "
    "does. What the base model had memorized before is not tested.",
)
"""What stands in each card."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        base_model: hub name, or folder.
        kind: class of the pipeline.
        lora: options of the adapters; None for a full training.
        data: counts, by what they are of.
        settings: of the training, by name.
        calibration: content of `records/calibration.json`; None where nothing was watched.
        mitigations: name and one line each.
    """

    base_model: str
    kind: str
    lora: Any = None
    data: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    mitigations: Sequence[tuple[str, str]] = ()


def write_cards(trainer: Any, module: Any, folder: Path) -> None:
    """Write the card into the exported folder, and beside LoRA weights in the run folder; where neither is, nothing.

    Args:
        trainer: at the end of training.
        module: that was trained.
        folder: of the exported pipeline.
    """
    facts, root = facts_of(trainer, module), Path(trainer.default_root_dir)
    for place, name in ((folder, "model_index.json"), (root, LORA_FILE)):
        if (place / name).is_file():
            with written_whole(place / CARD) as unfinished:
                unfinished.write_text(card(facts, adapters=name == LORA_FILE), encoding="utf-8")


def facts_of(trainer: Any, module: Any) -> CardFacts:
    """What a trainer and its module say of themselves."""
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
    # What an earlier run left there says nothing of one that nobody watches.
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
    """The Markdown of a card.

    Args:
        facts: what it says.
        adapters: whether it stands beside LoRA weights, and not in a pipeline folder.
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
        "# license: choose one; that of the base model, and of the images, may bind you",
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
    """What the monitor found, and what was done about it."""
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
        "the threshold rests on": basis if threshold is not None else "nothing: there was none",
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
        *(
            ["What was done about it during training:", "", *done]
            if done
            else ["Nothing was done about it in training."]
        ),
        "",
    ]


def evaluation_text(results: Mapping[str, Any]) -> str:
    """What an evaluation found, of the content of `results.json`."""
    replication, sampling = results["replication"], results["sampling"]
    cleared = results["verdict"].get("cleared")
    said = {
        False: "the model gives training images back",
        True: "the model gives back no more of them than chance explains",
        None: "whether the model gives them back could not be judged",
    }
    lines = [
        "### Evaluation",
        "",
        f"Sampled with captions of its training images: {said[cleared]}.",
        "",
        escaped(str(results["verdict"]["text"])),
        "",
        "| captions of | asked | given back |",
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
    """Put what an evaluation found into the cards of a run.

    Args:
        run: folder of the run.
        results: content of `results.json`.

    Returns:
        The cards that were changed; those without the comments of :data:`BEGIN` and :data:`END` are not.
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
    """Text that Markdown and HTML show as it is."""
    plain = html.escape("".join(one if one.isprintable() or one == "\n" else " " for one in text), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", plain)
