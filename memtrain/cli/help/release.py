"""Help screens of the commands that say whether a model may be released: `measure`, `compare`, `report`, `metrics`."""

from __future__ import annotations

from memtrain.cli.help.evaluation import CONVENTION, DTYPE, NETWORKS, RESULTS, SAMPLING, SHARED_WORK
from memtrain.cli.help.screen import SCREEN, TRUST, Group, Screen

MEASURE = Screen(
    "measure",
    "Sample the captions of the training images, and say which images come back and whether that is chance.",
    {
        "memtrain measure --run runs/mine": "a run of memtrain",
        "memtrain measure --model MODEL --data FOLDER --heldout OTHERS": "any model",
        "memtrain measure --run runs/mine --fail_on 'reproduced > 0.01'": "status 3",
    },
    (
        Group(
            "What is measured",
            {
                "--run FOLDER": "the folder of a finished training run (runs/tiny)",
                "--model MODEL": "any model instead: a folder, a file or a hub name",
                "--lora FILE": "an adapter file for that model",
                "--data PATH": "the images that MODEL may give back",
                "--heldout FOLDER": "images of the same kind that MODEL never saw",
                "--checkpoints PATTERN": "a curve over the checkpoints of a training",
                "--unique_prompts N": "training images chosen at random (60)",
            },
            more=f"--lora_scale --caption --size --max_prompts --group_by {DTYPE}",
        ),
        Group(
            "Measures",
            {
                "--copy_measures NAMES": "suggested, all, none, or a list",
                "--copy_detector FILE": "an SSCD network, ONNX or TorchScript",
                "--detectors NAMES": "suggested, all, none (saves a third of the time)",
            },
            more="--vision --kid=true|false --exposure=true|false",
        ),
        Group(
            "Decision",
            {"--fail_on CONDITION": "when to end with status 3 or 4, for a pipeline"},
            more="--false_positive_rate",
        ),
        SAMPLING,
        NETWORKS,
        Group("Many images", more="--compare_all --index"),
        SHARED_WORK,
        RESULTS,
    ),
)
COMPARE = Screen(
    "compare",
    "Compare two evaluated runs: what the second run gained over the first, and what it cost. It loads no model.",
    {"memtrain compare runs/tiny_baseline runs/tiny": "the first is what the second is compared with"},
    (
        Group(
            "Comparison",
            {
                "--level X": "coverage of the intervals (0.95)",
                "--pictures N": "images shown side by side at most (12)",
            },
            more="--runs --resamples --seed",
        ),
        Group("Results", {"--output FOLDER": "default: runs/comparison/FIRST-SECOND", **SCREEN.main}, more=TRUST),
    ),
    words="FIRST SECOND",
)
REPORT = Screen(
    "report",
    "Write the report of a folder of results again, also without images and names. It loads no model.",
    {
        "memtrain report runs/mine": "",
        "memtrain report runs/mine --redact": "without images, captions and names",
    },
    (
        Group(
            "Report",
            {
                "--redact": "leave out images, captions and names",
                "--redact_key SECRET": "the same secret gives the same codes again",
            },
            more="--of",
        ),
        Group("Output", SCREEN.main, more=TRUST),
    ),
    words="FOLDER",
)
METRICS = Screen(
    "metrics",
    "Measure folders of images: copies, diversity, fidelity to the prompts, distance to real ones. It loads no model.",
    {"memtrain metrics --generated images --prompts prompts.csv --original originals": ""},
    (
        Group(
            "Images",
            {
                "--generated FOLDER": "generations, named by prompt and seed, or a CSV",
                "--prompts FILE": "their prompts, in the order of the image numbers",
                "--original FOLDER": "the training images of the prompts",
                "--unblocked FOLDER": "the same prompts and seeds without the mitigation",
                "--real FOLDER": "real images, for FID, CLIP-FID and KID",
            },
        ),
        Group(
            "Networks of your own",
            {
                "--copy_detector FILE": "an SSCD network, ONNX or TorchScript",
                "--clip FOLDER": "a CLIP model, for A_CLIP and CLIP-FID",
                "--inception FILE": "a TorchScript Inception, for FID and KID",
            },
            more=CONVENTION,
        ),
        SHARED_WORK,
        Group("Results", {"--output FOLDER": "default: runs/metrics/GENERATED", **SCREEN.main}, more=TRUST),
    ),
)
