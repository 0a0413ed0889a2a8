"""Groups of options that several stages of an evaluation share."""

from __future__ import annotations

from memtrain.cli.help.screen import SCREEN, TRUST, Group

DTYPE = "--dtype=auto|float32|float16|bfloat16"
SHARED_WORK = Group("Parts of the work", more="--shard --engine=local|ray --engine_address --engine_tasks")
CONVENTION = "--sscd_convention=nemo|dcr|wen|membench"
NETWORKS = Group("Networks of your own", more=f"--sscd {CONVENTION} --clip --inception")
RESULTS = Group(
    "Results",
    {
        "--output FOLDER": "default: evaluation/ in the run's folder",
        **SCREEN.main,
    },
    more=TRUST,
)
MODEL = Group(
    "The model and its prompts",
    {
        "--run FOLDER": "the folder of a finished training run (runs/tiny)",
        "--model MODEL": "any model instead: a folder, a file or a hub name",
        "--lora FILE": "an adapter file for that model",
        "--prompts FILE": "a .csv, .txt, .json or .parquet file, or one prompt",
    },
    more=f"--lora_scale --max_prompts {DTYPE}",
)
SAMPLING = Group(
    "Sampling",
    {
        "--images_per_prompt N": "images for each prompt (4)",
        "--steps N": "sampling steps (20)",
        "--guidance_scale X": "strength of classifier-free guidance (4.0)",
        "--seed N": "seed of the first image (0)",
        "--batch_size N": "images at once; by default as many as memory holds",
    },
)
SEARCH = "--settings --settings.seeds --settings.seed --settings.steps --settings.call " + (
    "--settings.data_range --settings.cropped=true|false --settings.guidance_scale "
    "--settings.swapped_guidance=true|false --settings.precision=bfloat16|float16 --settings.sequential=true|false "
    "--settings.dead_forwards=true|false --settings.initial_theta --settings.theta_step --settings.lowest_theta "
    "--settings.literal_stop=true|false --settings.initial_k --settings.most_k --settings.factor --settings.slack "
    "--settings.selection_threshold --settings.refinement_threshold --settings.relative_refinement "
    "--settings.refinement_steps --settings.split_margin "
    "--settings.refinement=greedy|checked_split|binary_split|none --settings.sites"
)
"""Options of the search for neurons."""
