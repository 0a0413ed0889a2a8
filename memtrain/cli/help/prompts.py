"""Help screens of the commands for the prompts of any model."""

from __future__ import annotations

from memtrain.cli.help.evaluation import MODEL, NETWORKS, RESULTS, SAMPLING, SEARCH, SHARED_WORK
from memtrain.cli.help.screen import Group, Screen

DETECT = Screen(
    "detect",
    "Score prompts for memorization, without any training image, and say how unlikely each score is.",
    {
        "memtrain detect --run runs/mine": "the captions of a run",
        "memtrain detect --model MODEL --prompts prompts.csv": "your own prompts",
    },
    (
        MODEL,
        Group(
            "Detection",
            {
                "--detectors NAMES": "suggested, all, or a list of class paths",
                "--null WHICH": "prompts to compare with: auto, none, a number, a file",
            },
            more="--offload=true|false",
        ),
        SAMPLING,
        SHARED_WORK,
        RESULTS,
    ),
)
MITIGATE = Screen(
    "mitigate",
    "Sample every prompt without and with a mitigation on the same noise, and compare the images.",
    {
        "memtrain mitigate --run runs/mine": "",
        "memtrain mitigate --model MODEL --prompts prompts.csv": "your own prompts",
    },
    (
        MODEL,
        Group(
            "Mitigation",
            {"--mitigation CLASS": "what is measured (MemAttn's attention masking)"},
            more="--false_positive_rate",
        ),
        SAMPLING,
        NETWORKS,
        SHARED_WORK,
        RESULTS,
    ),
)
ATTENTION = Screen(
    "attention",
    "Draw the attention that each token of a prompt receives at each step, and the entropy of all prompts.",
    {
        "memtrain attention --run runs/mine": "",
        "memtrain attention --model MODEL --prompts 'a red fox'": "one prompt",
    },
    (
        MODEL,
        Group(
            "Drawing",
            {
                "--most N": "prompts that get a figure of their own (4)",
                "--save_arrays": "also write all values as arrays",
            },
            more="--offload=true|false",
        ),
        SAMPLING,
        SHARED_WORK,
        RESULTS,
    ),
)
LOCALIZE = Screen(
    "localize",
    "Find the neurons that carry memorized images, mask them, and check whether the images are gone.",
    {
        "memtrain localize --run runs/mine": "",
        "memtrain localize --model MODEL --prompts prompts.csv": "your own prompts",
    },
    (
        MODEL,
        Group(
            "Search",
            {
                "--sites PATTERN": "attention layers that are searched, such as '*'",
                "--published": "search exactly as NeMo's published code",
                "--threshold X": "similarity of memorized prompts (calibrated)",
                "--contribution X": "mask by contribution instead, such as 0.4",
            },
            more=SEARCH + " --statistics",
        ),
        Group(
            "Check",
            {
                "--baselines NAMES": "masks to compare with, or all",
                "--bake FOLDER": "save a pipeline with the masks in its weights",
            },
            more="--probe_steps --false_positive_rate --baseline_k --save_images=true|false",
        ),
        SAMPLING.folded(),
        NETWORKS,
        SHARED_WORK,
        RESULTS,
    ),
)
CALIBRATE = Screen(
    "calibrate",
    "Measure the activations and the threshold that `localize` compares with, on prompts that are not memorized.",
    {
        "memtrain calibrate --run runs/mine": "",
        "memtrain calibrate --model MODEL --prompts others.csv": "your own prompts",
    },
    (
        MODEL,
        Group(
            "Search",
            {
                "--sites PATTERN": "attention layers that are searched, such as '*'",
                "--published": "search exactly as NeMo's published code",
                "--export FILE": "also write a .pt file for NeMo's scripts",
            },
            more=SEARCH,
        ),
        SHARED_WORK,
        RESULTS,
    ),
)
