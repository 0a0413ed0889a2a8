"""The sections of a plan: figures by name, which are printed as they are and written as JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from memtrain.callbacks.model_card import LORA_FILE
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.cli.plan_cost import disk, latent_shape, measure, memory
from memtrain.cli.plan_run import PlannedRun
from memtrain.cli.plan_start import before_the_first_step
from memtrain.evaluation.stages.measure.verdict import FEWEST_HELDOUT
from memtrain.evidence.thresholds import heldout_method
from memtrain.models.backbones.base import find_denoiser, unwrap
from memtrain.monitoring.data_protocol import known_samples, lacking_to_measure, require_measurable
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.planned_visits import too_short_for_flags
from memtrain.training.schedule import optimizer_of

REFERENCES = {
    True: "a profile of every sample",
    False: "none",
    "paired": "paired, on the same noise",
    "first_visit": "a profile of every sample, at its first visit",
}
"""The reference of the values, in words."""


def resolved(run: PlannedRun, *, measured: bool = False) -> dict[str, dict[str, Any]]:
    """The plan; problems and warnings are added to the run.

    Args:
        run: set up.
        measured: time steps on the device, at the end.
    """
    figures = {"Model": model(run), "Data": data(run), "Training": training(run)}
    figures["Watch"] = watch(run) if run.batches else {"signals": None}
    if run.batches:
        figures["Before step 1"] = before_the_first_step(run)
    figures["Afterwards"] = afterwards(run)
    estimable = all(hasattr(run.module, name) for name in ("parts", "execution", "optimizer_class", "ema"))
    if estimable and run.batches:
        figures["Memory"] = of_memory(run)
        if measured:
            figures["Time"] = of_time(run)
        figures["Disk"] = of_disk(run)
    else:
        run.warnings.append(
            "Memory, time and disk use are estimated where the data can be read, and for TextToImageModule alone; this "
            f"is {type(run.module).__name__}"
        )
    return figures


def model(run: PlannedRun) -> dict[str, Any]:
    """The model, and its trained part."""
    module = run.module
    parts: Any = getattr(module, "parts", None)
    weights = list(module.parameters())
    frozen = [] if parts is None else [one for part in _modules(parts.pipeline) for one in part.parameters()]
    trained = sum(one.numel() for one in weights if one.requires_grad)
    everything = {id(one): one.numel() for one in (*weights, *frozen)}
    lora = getattr(module, "lora", None)
    what = "all weights of the denoiser" if lora is None else f"LoRA adapters of rank {lora.rank}"
    if hasattr(module, "trained_text_encoders"):
        what += ", and text encoders"
    return {
        "kind": type(parts.pipeline).__name__ if parts is not None else type(module).__name__,
        "denoiser": type(getattr(module, "denoiser", module)).__name__,
        "trains": what,
        "trained_parameters": trained,
        "frozen_parameters": sum(everything.values()) - trained,
        "average": getattr(module, "ema", None) is not None,
    }


def _modules(pipeline: Any) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def data(run: PlannedRun) -> dict[str, Any]:
    """The data of the training."""
    if not run.batches:
        return {"path": getattr(run.data, "path", None)}
    pictures, train = run.picture_visits(), getattr(run.data, "train_dataset", None)
    held = known_samples(run.data, "heldout")
    figures: dict[str, Any] = {
        "path": getattr(run.data, "path", None),
        "training_samples": len(known_samples(run.data, "train")) or None,
        "pictures": len(pictures) or None if run.scanned is not False else None,
        "held_out": len(held),
        "left_out_as_broken": getattr(getattr(run.data, "broken", None), "lost", None) or None,
        "visits_in_an_epoch": None if train is None else len(train),
        "size": getattr(run.data, "resolution", None),
    }
    if run.scanned is False:
        run.warnings.append(
            "The data were not scanned yet, so files are counted here as if each were a picture of its own; training "
            "scans them first (memtrain scan shows what it finds), and holds out accordingly"
        )
    _warn_of_few(run, len(held))
    if len(held) == getattr(run.data, "heldout_most", None):
        run.warnings.append(
            f"{len(held)} pictures are held out, as many as heldout_most allows, whatever share of the data that is; a "
            "rate needs no more"
        )
    caches = []
    if "latents in memory" in run.caches and hasattr(run.module, "vae"):
        channels, rows, columns = latent_shape(run)
        views = getattr(getattr(train, "framing", None), "variants", 1)
        count = views * len(known_samples(run.data, "train")) + len(held)
        figures["latents_in_memory_bytes"] = 4 * channels * rows * columns * count
        caches.append("latents in memory")
    if "on disk" in run.caches:
        cache = run.caches["on disk"]
        what = " and ".join(name for name in ("latents", "text") if getattr(cache, name))
        caches.append(f"{what} on disk, in {cache.folder}")
    return {**figures, "caches": caches}


def _warn_of_few(run: PlannedRun, held: int) -> None:
    """The limits of an evaluation if hardly any picture is held out; edited copies do not count."""
    real = held - len(getattr(run.data, "copied_from", {}))
    if getattr(run.data, "train_dataset", None) is not None and real < FEWEST_HELDOUT:
        run.warnings.append(
            f"{real} picture(s) are held out. `memtrain measure` clears no model by fewer than "
            f"{FEWEST_HELDOUT}; with none it takes captions that are made of the data's words instead, and says so. "
            "Hold out more (heldout_fraction), or pictures of the same kind from elsewhere (heldout_path)"
        )


def training(run: PlannedRun) -> dict[str, Any]:
    """How long, and in which steps."""
    trainer, plan, module = run.trainer, run.plan, run.module
    batch = getattr(run.data, "batch_size", None)
    whole = None if batch is None else batch * trainer.world_size * plan.accumulate
    optimizer = _optimizer(run)
    schedule = getattr(module, "schedule", None)
    if run.steps is None:
        run.warnings.append("The run has no planned end (max_steps and max_epochs are unlimited): it is yours to stop")
    return {
        "batches_per_epoch": plan.batches_per_epoch,
        "steps": run.steps,
        "epochs": None if run.visits() is None else round(float(run.visits() or 0), 2),
        "batch": f"{batch} × {trainer.world_size} processes × {plan.accumulate} accumulated = {whole}",
        "optimizer": "the module's own" if optimizer is None else type(optimizer).__name__,
        "learning_rate": None if optimizer is None else float(optimizer.param_groups[0]["lr"]),
        "schedule": schedule if isinstance(schedule, str) else getattr(schedule, "__qualname__", "the module's own"),
        "warm-up_steps": getattr(module, "warmup_steps", None),
        "precision": str(trainer.precision),
        "device": str(trainer.strategy.root_device),
        "gradient_checkpointing": bool(getattr(getattr(module, "execution", None), "gradient_checkpointing", False)),
    }


def _optimizer(run: PlannedRun) -> Optimizer | None:
    """The optimizer, made as a trial: wrong arguments are a problem now. None where the module makes its own."""
    module = run.module
    if not hasattr(module, "optimizer_class"):
        return None
    try:
        return optimizer_of(module.trained(), module.optimizer_class, learning_rate=module.learning_rate)
    except Exception as error:
        run.problems.append(f"The optimizer cannot be made: {type(error).__name__}: {error}")
        return None


def watch(run: PlannedRun) -> dict[str, Any]:
    """The watched signals, and how many samples can be judged."""
    monitor = run.monitor
    if monitor is None:
        run.warnings.append("Nothing watches for memorization: there is no MemorizationMonitor among the callbacks")
        return {"signals": []}
    options, host = monitor.options, run.host
    held: Any = getattr(run.data, "heldout_dataset", None)
    sites: int | None = None
    with run.checking():
        _, denoiser, backbone = find_denoiser(run.module, options.denoiser)
        sites = len(backbone.select_sites(unwrap(denoiser), options.sites))
    basis = "the bulk of the training samples"
    with run.checking():
        if options.profiled:
            require_measurable(host, needed_by=f"`reference: {str(options.reference).lower()}`")
        if options.reference is not False and not lacking_to_measure(host, training_samples=options.profiled):
            count = len(held.unique())
            basis = f"{count} held-out samples ({heldout_method(count, options.false_positive_rate)})"
    least, pictures = options.minimum_visits, run.picture_visits()
    expected = [run.visits(count, counted=True) for count in pictures.values()]
    judged = None if None in expected or not expected else sum(visits >= least for visits in expected if visits)
    short = too_short_for_flags(
        host,
        minimum_visits=least,
        maximum_timestep=options.settings.maximum_timestep,
        paired_every=options.paired_every if options.reference == "paired" else None,
    )
    if short is not None:
        run.warnings.append(short)
    elif judged is not None and judged < len(pictures):
        run.warnings.append(
            f"{judged:,} of {len(pictures):,} pictures will have the {least} counted visits that a flag needs; the "
            "others cannot be judged. Train for more epochs, or lower minimum_visits, to have them judged"
        )
    known = [one for one in expected if one is not None]
    return {
        "signals": [signal.name for signal in monitor.engine.signals],
        "flags_by": options.flag_by,
        "attention_sites": sites,
        "reference": REFERENCES[options.reference],
        "threshold_rests_on": basis,
        "false_positive_rate": options.false_positive_rate,
        "minimum_visits": least,
        "counted_visits": f"{min(known):.1f} to {max(known):.1f} of a picture" if known else None,
        "pictures_that_can_be_judged": judged,
        "mitigations": [type(one).__name__ for one in run.callbacks if isinstance(one, Mitigation)],
    }


def afterwards(run: PlannedRun) -> dict[str, Any]:
    """The exported files."""
    exports = [one for one in run.callbacks if isinstance(one, PipelineExport)]
    if not exports:
        run.warnings.append("No pipeline is exported: there is no PipelineExport among the callbacks")
    folders = [one.folder or f"{run.trainer.default_root_dir}/pipeline" for one in exports if one.adapters != "lora"]
    if getattr(run.module, "lora", None) is not None and any(one.adapters != "pipeline" for one in exports):
        folders.append(f"{run.trainer.default_root_dir}/{LORA_FILE}")
    own = [type(one).__name__ for one in run.callbacks if type(one).__module__.startswith("memtrain.")]
    return {"exports": folders, "callbacks": own}


def of_memory(run: PlannedRun) -> dict[str, Any]:
    """The estimate, beside what there is."""
    try:
        found = memory(run)
    except Exception as error:
        # Code that asks for values, and weights of a kind of their own, cannot be run without content.
        run.warnings.append(f"Memory cannot be estimated: {type(error).__name__}: {error}")
        return {"peak": None}
    figures: dict[str, Any] = {
        "peak_bytes": found.peak,
        "fullest_moment": max(found.moments, key=lambda name: found.moments[name]),
        "a_gpu_needs_bytes": found.needed,
        "denoiser_bytes": found.weights,
        "other_parts_bytes": sum(found.others.values()),
        "average_bytes": found.average,
        "optimizer_states_bytes": found.states,
        "gradients_bytes": found.gradients,
        "forward_and_backward_bytes": found.passes,
    }
    device = run.trainer.strategy.root_device
    if device.type == "cuda":
        figures["device_has_bytes"] = there = int(torch.cuda.get_device_properties(device).total_memory)
        if found.needed > there:
            run.warnings.append(
                "The estimate is above what the GPU has: lower the batch size and accumulate, set "
                "execution.gradient_checkpointing, or train LoRA adapters"
            )
    return figures


def of_time(run: PlannedRun) -> dict[str, Any]:
    """A few steps on the device."""
    found, steps = measure(run), run.steps
    seconds = found["seconds_per_batch"]
    figures: dict[str, Any] = {"seconds_per_batch": seconds}
    if steps is not None:
        hours = seconds * steps * run.plan.accumulate / 3600
        figures["all_steps"] = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    figures["without"] = ["watch", "callbacks", "validation", "encoding", "profile of the base model"]
    if "peak" in found:
        figures["measured_peak_bytes"] = int(found["peak"])
    return figures


def of_disk(run: PlannedRun) -> dict[str, Any]:
    """The size of the files, and the free space."""
    found = disk(run)
    free = found.pop("free")
    if sum(found.values()) > free:
        run.problems.append(
            f"The run writes about {sum(found.values()) / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: keep "
            "fewer checkpoints, or choose another trainer.default_root_dir"
        )
    return {**{f"{name}_bytes": value for name, value in found.items()}, "free_bytes": free}
