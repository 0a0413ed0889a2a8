"""A small world in which the commands and the code of the pages run: real parts, made small.

Everything that differs from the words of a page is stated in the tables of this file.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml

from memtrain.data.source import open_source
from tests.conformance.pipelines import pipeline_of
from tests.conftest import ROOT

TRAIN = [
    *["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", "--trainer.precision", "32-true"],
    *["--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "1"],
    *["--data.init_args.resolution", "16", "--data.init_args.batch_size", "4"],
]
IMAGES = ["--images_per_prompt", "1", "--steps", "2"]
SMALL: dict[str, list[str]] = {
    "train": TRAIN,
    "plan": TRAIN,
    "measure": [*IMAGES, "--unique_prompts", "4", "--max_prompts", "6", "--kid", "false"],
    "detect": [*IMAGES, "--max_prompts", "4"],
    "mitigate": [*IMAGES, "--max_prompts", "4"],
    "attention": [*IMAGES, "--max_prompts", "4"],
    "localize": [*IMAGES, "--max_prompts", "8", "--settings.seeds", "2", "--settings.steps", "2", "--probe_steps", "1"],
    "calibrate": ["--settings.seeds", "2", "--settings.steps", "2"],
}
"""Words that are added to a command, by its name; they win over those of the page."""
WORDS = {
    "shards/{0000..0099}.tar": "shards/{0000..0001}.tar",
    "RUN/pipeline": "assets/tiny-sd",
    "RUN/kept_images/flagged": "my_folder",
    "RUN/kept_images/heldout": "others",
    "mine.yaml": "configs/tiny_baseline.yaml",
    "M": "assets/tiny-sd",
    "their_model": "assets/tiny-sd",
    "pictures": "my_folder",
    "other_pictures": "others",
    "my_model": "assets/tiny-sd",
    "folder": "assets/tiny-sd",
}
"""Words that stand for something of the reader's, and what they are here."""
CODE = {"assets/clipart-pd.tar": "whole.tar"}
"""Names in code, and what they are here: commands get a small part of this shard, code gets all of it."""
FAMILIES = {
    **{"sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "pixart": "pixart", "sana": "sana"},
    **{"sd15": "unet", "dream": "unet"},
}
"""Configurations whose model is on a hub, by how their names begin; and the small random model of the same family."""
WORLD = ("configs", "examples", "slurm", "benchmarks", "train.py", "evaluate.py")


def make_world(folder: Path) -> Path:
    """Write the world: a clone with a small model and a small shard, a folder of the reader's, prompts.

    Args:
        folder: an empty folder.
    """
    for name in WORLD:
        (folder / name).symlink_to(ROOT / name)
    (folder / "assets").mkdir()
    for path in (ROOT / "assets").iterdir():
        if path.name not in ("tiny-sd", "clipart-pd.tar"):
            (folder / "assets" / path.name).symlink_to(path)
    pipeline_of("unet").save_pretrained(folder / "assets" / "tiny-sd")
    _shard(ROOT / "assets" / "clipart-pd.tar", folder / "assets" / "clipart-pd.tar", first=0, count=60)
    (folder / "whole.tar").symlink_to(ROOT / "assets" / "clipart-pd.tar")
    (folder / "shards").mkdir()
    for number in range(2):
        _shard(ROOT / "assets" / "clipart-pd.tar", folder / "shards" / f"{number:04}.tar", first=60 * number, count=30)
    captions = _pictures("clipart-pd.tar", folder / "my_folder", count=50)
    _pictures("emoji-heldout.tar", folder / "others", count=20)
    _pictures("clipart-pd.tar", folder / "twelve", count=12)
    rows = [f'"{caption}"' for caption in captions[:4]]
    (folder / "prompts.csv").write_text("\n".join(["caption", *rows]) + "\n", encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(captions[:4]) + "\n", encoding="utf-8")
    for name in ("ordinary.txt", "memorized.csv"):
        text = "\n".join([*(["caption"] if name.endswith("csv") else []), *captions[4:12]])
        (folder / name).write_text(text.replace(",", " ") + "\n", encoding="utf-8")
    return folder


def _shard(source: Path, target: Path, *, first: int, count: int) -> None:
    """A part of a shard, of two files for each sample."""
    with tarfile.open(source) as read, tarfile.open(target, "w") as written:
        members = [member for member in read.getmembers() if member.isfile()]
        stems = list(dict.fromkeys(member.name.split(".")[0] for member in members))[first : first + count]
        for member in members:
            if member.name.split(".")[0] in stems:
                written.addfile(member, read.extractfile(member))


def _pictures(shard: str, folder: Path, *, count: int) -> list[str]:
    """A folder of pictures with `.txt` captions; their captions."""
    source = open_source(str(ROOT / "assets" / shard))
    folder.mkdir()
    for index in range(count):
        source.load_image(index).save(folder / f"{folder.name}_{index:03}.png")
        (folder / f"{folder.name}_{index:03}.txt").write_text(source.samples[index].caption, encoding="utf-8")
    return [sample.caption for sample in source.samples[:count]]


def small(words: Sequence[str], world: Path) -> list[str]:
    """The words of a command as they run here.

    Args:
        words: the words behind `memtrain`, as the page has them.
        world: the folder of :func:`make_world`.
    """
    words = [WORDS.get(word, word) for word in (words[: words.index("|")] if "|" in words else words)]
    for option in ("--engine", "--engine_address"):  # Ray has tests of its own, in tests/engines
        if option in words:
            at = words.index(option)
            words = words[:at] + words[at + 2 :]
    if words[0] not in SMALL or {"--help", "-h"} & set(words):
        return words
    added = list(SMALL[words[0]])
    if words[0] == "detect" and "--null" not in words:
        added += ["--null", "none"]
    configs = [Path(words[at + 1]).stem for at, word in enumerate(words[:-1]) if word == "--config"]
    kind = next((kind for name in configs for start, kind in FAMILIES.items() if name.startswith(start)), None)
    if words[0] in ("train", "plan") and kind is not None:
        model = world / "models" / kind
        if not model.is_dir():
            pipeline_of(kind).save_pretrained(model)
        size = "32" if kind == "sana" else "16"
        added += ["--model.init_args.pretrained", str(model), "--data.init_args.resolution", size]
    if words[0] == "train" and "streamed" not in configs:
        added += ["--data.init_args.heldout_fraction", "0.3"]
    return [*words, *added]


def run_folder(words: Sequence[str]) -> str:
    """The folder that a training writes to: that of its words, or of its configuration."""
    found = "runs/tiny"
    for at, word in enumerate(words[:-1]):
        if word == "--config":
            name = words[at + 1].removeprefix("configs/").removesuffix(".yaml")
            path = Path("configs") / f"{name}.yaml"
            settings = yaml.safe_load((path if path.is_file() else Path(words[at + 1])).read_text(encoding="utf-8"))
            found = settings.get("trainer", {}).get("default_root_dir", found)
        elif word == "--trainer.default_root_dir":
            found = words[at + 1]
    return found


def runs_named(words: Sequence[str]) -> list[str]:
    """Run folders that a command reads."""
    named = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--run", "--of")]
    named += [found[1] for word in words if (found := re.fullmatch(r"(runs/\w+)/(pipeline|flagged\.csv)", word))]
    if words[0] == "compare":
        named += [word for word in words[1:] if word.startswith("runs/")]
    return [re.sub(r"/evaluation$", "", name) for name in named]


def take_for_granted(run: str, prepared: Path) -> None:
    """Put a finished run where a page takes one for granted."""
    if not Path(run).exists():
        shutil.copytree(prepared, run)


class Batches:
    """The `loader` of a page's loop: each batch comes with a forward of the denoiser, which the page writes as `...`.

    Args:
        names: the namespace of the page's code, in which `model_pred` and `target` are put.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def __iter__(self) -> Any:
        unet, scheduler = self.names["unet"], self.names["noise_scheduler"]
        for step in range(3):
            noise, timesteps = torch.randn(4, 4, 8, 8), torch.randint(1000, (4,))
            noisy = scheduler.add_noise(torch.zeros_like(noise), noise, timesteps)
            self.names["model_pred"] = unet(noisy, timesteps, torch.zeros(4, 7, 16)).sample
            self.names["target"] = noise
            yield {"key": [f"sample {step} {row}" for row in range(4)]}
            self.names["loss"].backward()


def presumed() -> dict[str, Any]:
    """Names that the code of pages takes for granted: what a training script of the reader's has."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler

    page = sys.modules["__page__"] = ModuleType("__page__")  # dataclasses look for the module of a class
    names = vars(page)
    pipeline = pipeline_of("unet")
    accelerator = Accelerator(cpu=True, project_dir="runs/script")
    names |= {
        "unet": accelerator.prepare(pipeline.unet.train()),
        "noise_scheduler": DDPMScheduler(),
        "accelerator": accelerator,
    }
    names |= {"scheduler": names["noise_scheduler"], "pipeline": pipeline_of("unet"), "vae": pipeline.vae}
    names["prompts"] = ["a red heart", "a dog on the beach"]
    names["loader"] = Batches(names)
    return names
