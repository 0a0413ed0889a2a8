"""`evaluate.py`: measures a finished run, scores prompts of any model, and whatever else a stage does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from jsonargparse import auto_cli

from memtrain.cli.chatter import quiet
from memtrain.cli.measure import measure
from memtrain.cli.run_folder import known_prompts, pipeline_folder, run_data
from memtrain.cli.stages import MEASURE, STAGES, StageInput, check_prompts, chosen_shard, chosen_stages, refuse_idle
from memtrain.detectors.base import Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.errors import MemtrainError
from memtrain.evaluation.report.page import write_report
from memtrain.evaluation.stages.attention.attention import attention_plots as draw_attention
from memtrain.evaluation.stages.prompts import read_prompts
from memtrain.inference.attention_masking import AttentionMasking
from memtrain.inference.base import InferenceMitigation
from memtrain.models.pipeline import load_pipeline


def evaluate_folder(
    run: str = "runs/tiny",
    *,
    stages: list[str] | str | None = None,
    model: str | None = None,
    prompts: str | None = None,
    images_per_prompt: int = 4,
    max_prompts: int = 150,
    unique_prompts: int = 60,
    steps: int = 20,
    guidance_scale: float = 4.0,
    batch_size: int = 32,
    false_positive_rate: float | None = None,
    kid: bool | None = None,
    seed: int = 0,
    detectors: bool | list[Detector] = True,
    sites: str | None = None,
    contribution: float | None = None,
    bake: str | None = None,
    shard: str | None = None,
    mitigation: InferenceMitigation | None = None,
    clip: str | None = None,
    attention_plots: int = 0,
    output: str | None = None,
) -> dict[str, Any]:
    """Measure what a trained model reproduces, and compare with what training said; or score prompts of any model.

    Args:
        run: folder of a finished training run.
        stages: `measure` (what the run reproduces; the default), `detect` (scores of prompts; the default with a
            model), `calibrate` (what `localize` compares with, from prompts that are not memorized; it measures that by
            itself otherwise), `localize` (finds neurons that carry memorized images, masks them and checks whether the
            images are gone), `mitigate` (what a mitigation while sampling changes); several as '[measure, detect]'.
        model: a pipeline folder or hub name instead of a run.
        prompts: a file of prompts (.csv, .txt, .jsonl, .parquet), or one prompt. Without it, stages other than
            `measure` take the run's planted captions as memorized and its held-out ones as not.
        images_per_prompt: images sampled for each prompt, with seeds seed, seed + 1, ...
        max_prompts: prompts at most in each group (planted, flagged, excluded, canary, held-out), or templates.
        unique_prompts: prompts of images that were trained on once per epoch, chosen at random; flagged ones are asked
            for beside them.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        false_positive_rate: probability that a prompt never trained on counts as reproduced; sets the threshold.
            Default 0.01, or with fewer than 99 held-out prompts the lowest that they can promise.
        kid: measure KID on the held-out prompts; by default if the extra `quality` is installed.
        seed: first seed.
        detectors: which detectors read the sampling, as class paths with their arguments; true for a choice of cheap
            ones, false for none, which saves a third of the time of `measure`.
        sites: attention layers whose neurons `localize` searches, such as `*`; default those of the down blocks and the
            middle.
        contribution: share of all value neurons, such as 0.4, that `localize` masks by what they add for a prompt;
            default NeMo's search for few neurons.
        bake: folder to which `localize` saves a pipeline with all masks in its weights.
        shard: this process's part of the prompts to score or to search, such as 0/4 to 3/4; `merge` to put the parts
            together. By default what a Slurm job array or torchrun says, or all prompts.
        mitigation: what the stage `mitigate` measures, as in configs/inference; default MemAttn's attention masking.
        clip: folder of a CLIP model that judges there whether images show what their prompts say; default the model's
            own denoising loss.
        attention_plots: prompts whose attention is drawn, token by token; with any, the entropy of all prompts too.
        output: folder of the results; default `evaluation/` in the run folder, with a model `runs/detection`.

    Returns:
        Per stage the content of its JSON file.
    """
    names = chosen_stages(
        stages, model=model, prompts=prompts, detectors=bool(detectors), attention_plots=attention_plots
    )
    part = chosen_shard(shard, stages=names)
    said: dict[str, Any] = {"sites": sites, "contribution": contribution, "bake": bake, "mitigation": mitigation}
    refuse_idle(names, said | {"clip": clip, "false_positive_rate": false_positive_rate})
    found = None if prompts is None else read_prompts(prompts)
    place = Path(output or ("runs/detection" if model is not None else Path(run) / "evaluation"))
    own_images = None
    if model is None:
        config, data = run_data(Path(run))
        source = str(pipeline_folder(Path(run)))
        if found is None and names != [MEASURE]:
            found, own_images = known_prompts(data, most=max_prompts)
    if found is not None:
        check_prompts(names, found)
    if model is None:
        pipeline = StableDiffusionPipeline.from_pretrained(source, safety_checker=None, use_safetensors=True)
    else:
        source = model
        pipeline = load_pipeline(model)
    pipeline.to(own_device())
    sampling: dict[str, Any] = {
        "output": place,
        "seeds": range(seed, seed + images_per_prompt),
        "steps": steps,
        "guidance_scale": guidance_scale,
        "batch_size": batch_size,
    }
    similarity: list[Detector] = [NoiseSimilarity()] if images_per_prompt > 1 else []
    results = {}
    for name in names:
        if name == MEASURE:
            reading = [GuidanceNorm(), MemAttn("E"), MemAttn("D"), *similarity]
            reading = detectors if isinstance(detectors, list) else reading if detectors else []
            results[name] = measure(
                pipeline,
                data,
                run=Path(run),
                config=config,
                detectors=reading,
                max_prompts=max_prompts,
                unique_prompts=unique_prompts,
                false_positive_rate=false_positive_rate,
                kid=kid,
                **sampling,
            )
            continue
        assert found is not None
        scoring = [GuidanceNorm(), MemAttn("E"), GuidanceNorm(steps=None), MemAttn("D"), *similarity]
        scoring = detectors if isinstance(detectors, list) else scoring
        results[name] = STAGES[name](
            StageInput(
                pipeline=pipeline,
                prompts=found,
                own_images=own_images,
                model=source,
                detectors=scoring,
                false_positive_rate=false_positive_rate,
                sites=sites,
                contribution=contribution,
                bake=bake,
                shard=part,
                mitigation=mitigation or AttentionMasking(),
                clip=clip,
                **sampling,
            )
        )
    # Of shared prompts, only the process that finished last has results.
    if attention_plots and found is not None and all(results.values()):
        for path in draw_attention(pipeline, found, most=attention_plots, **sampling):
            print(f"Attention: {path}")
    if names != [MEASURE] and (place / "results.json").is_file():
        write_report(place)
    return results


def own_device() -> str:
    """The GPU of this process, one of several that torchrun started on the machine or the first; else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def evaluate(args: list[str] | None = None) -> None:
    """`python evaluate.py [--run runs/name] [--stages '[measure, detect]']`.

    Args:
        args: arguments instead of those of the command line.
    """
    quiet()
    try:
        auto_cli(evaluate_folder, as_positional=False, args=args)
    except MemtrainError as error:
        sys.exit(f"{type(error).__name__}: {error}")
