"""What a stage is: one folder, one subcommand of `memtrain`, found by walking the package.

The folder `stages/<name>/` holds

- `stage.py` with one :class:`Stage`: its fields are the options of the subcommand, its docstring their help;
- `section.py` with `sections(folder)`: what the report says about the files that the stage left in `folder`;
- whatever else the stage needs. What is heavy is imported by :meth:`Stage.__call__`, so that other commands and
  `--help` do not wait for it.

No stage imports another. What they share stands in this folder. All stages of a run or of one `--output` write to one
folder, so a stage names its files after itself, and every results file is written by
:func:`memtrain.records.write_json`, or where it has a schema by
:func:`memtrain.evaluation.stages.results_file.write_results`.
"""

from __future__ import annotations

import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any, Literal

from diffusers import DiffusionPipeline
from torch import Tensor

from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.evaluation import stages
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.report.page import write_page
from memtrain.evaluation.report.section import Section
from memtrain.evaluation.report.spoilt import SHAPE, spoilt, spoilt_sections
from memtrain.evaluation.sampling.settings import Precision, Sampling
from memtrain.evaluation.stages.checkpoints import Checkpoint
from memtrain.evaluation.stages.prompts import PromptToScore, as_prompts
from memtrain.evaluation.stages.run_samples import Run

DEFAULT = Sampling()


@dataclass(frozen=True, kw_only=True)
class StageInput:
    """What every stage is given.

    Attributes:
        pipeline: the model, on its device.
        output: folder to write to; it may hold files of other stages.
        prompts: P prompts, with what is known about them; texts of which nothing is known, in a list, an array or a
            column of a data frame, become such prompts.
        own_images: `(P, 3, H, W)` uint8, the image that belongs to each prompt; None unless the prompts are a run's.
        sampling: how images are sampled.
        model: where the pipeline comes from.
        run: the run that trained it, if it was one.
        checkpoints: of its training, in order, where a stage is asked about several.
    """

    pipeline: DiffusionPipeline
    output: Path
    prompts: Sequence[PromptToScore] = ()
    own_images: Tensor | None = None
    sampling: Sampling = DEFAULT
    model: str = ""
    run: Run | None = None
    checkpoints: Sequence[Checkpoint] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", as_prompts(self.prompts))


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """Options and work of one stage; a subclass is a frozen dataclass whose fields are its options.

    Args:
        run: folder of a finished training run.
        output: folder of the results; default `evaluation/` in the run folder, with a model `runs/STAGE/MODEL` (of
            `measure` `runs/evaluation/MODEL`).
        dtype: in which numbers the model computes: half precision on a GPU (float16 of a U-Net, bfloat16 of a
            transformer) and float32 on a CPU, or what is named.
    """

    run: str = "runs/tiny"
    output: str | None = None
    dtype: Precision = "auto"

    def check(self) -> None:
        """Refuse options that contradict each other, before anything is loaded."""
        _ = self.sampling  # settings that make no sense are refused by it

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path(self.output or Path(self.run) / "evaluation")

    @property
    def sampling(self) -> Sampling:
        """How this stage samples images."""
        return DEFAULT

    @abstractmethod
    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Do the work: write files to `given.output`, print what was found.

        Returns:
            What the stage's JSON file holds; empty if this process did only its part.
        """

    def exit_status(self, results: Mapping[str, Any]) -> int:
        """Of the command, by what the stage has found; 0 unless the stage has an option that says otherwise."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """A stage that looks at the model of a run, or at any model.

    Args:
        model: a pipeline folder or hub name instead of a run.
        lora: a safetensors file of adapters for that model, of diffusers' or kohya's format, or a folder that holds
            `pytorch_lora_weights.safetensors`.
        lora_scale: what the adapters' part is multiplied by.
    """

    model: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0

    def check(self) -> None:
        """Refuse adapters without a model."""
        super().check()
        if self.model is None and (self.lora is not None or self.lora_scale != 1.0):
            raise ConfigurationError(
                f"lora={self.lora!r} without a model",
                expected="the base model of the adapters; a run brings its own",
                remedy="name it with --model",
            )

    @property
    def folder(self) -> Path:
        """Where results go; those of a model do not mix with those of another, nor stages without a run with others."""
        if self.output is None and self.model is not None:
            return Path("runs") / type(self).__name__.lower() / model_name(self.model, self.lora)
        return super().folder


def model_name(model: str, lora: str | None = None) -> str:
    """A folder name for a model, and the adapters that are added to it: `runs/x/pipeline` is `x`."""
    path = Path(model)
    path = path.parent if path.name == "pipeline" and path.parent.name else path
    name = path.stem if path.suffix in (".safetensors", ".ckpt") else path.name
    if lora is not None:
        file = Path(lora)
        named = file.parent if file.stem == "pytorch_lora_weights" and file.parent.name else file
        name += f"-{named.stem if named.suffix == '.safetensors' else named.name}"
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "model"


@dataclass(frozen=True, kw_only=True)
class PromptStage(ModelStage):
    """A stage that takes prompts, of a run or of any model.

    Args:
        prompts: a file of prompts (.csv, .tsv, .txt, .json, .jsonl, .parquet; text also as .gz), or one prompt. Without
            it, a run's planted captions count as memorized and its held-out ones as not.
        max_prompts: a run's prompts at most, planted and held-out each.
    """

    prompts: str | None = None
    max_prompts: int = 150

    def check(self) -> None:
        """Refuse a model without prompts."""
        super().check()
        if self.model is not None and self.prompts is None:
            raise ConfigurationError(
                f"model={self.model!r} without prompts",
                expected="prompts to ask that model for; a run brings its own captions",
                remedy="name a file of prompts with --prompts, or a run with --run",
            )

    def check_prompts(self, prompts: Sequence[PromptToScore]) -> None:
        """Refuse prompts that the stage would refuse, before a model is loaded."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of a stage that samples images.

    Args:
        images_per_prompt: images sampled for each prompt, with seeds seed, seed + 1, ...
        seed: first seed.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once; by default batches of 32, in as many parts as the free memory asks for.
    """

    images_per_prompt: int = len(DEFAULT.seeds)
    seed: int = DEFAULT.seeds[0]
    steps: int = DEFAULT.steps
    guidance_scale: float = DEFAULT.guidance_scale
    batch_size: int | None = None

    @property
    def sampling(self) -> Sampling:
        """These settings."""
        return Sampling(
            seeds=range(self.seed, self.seed + self.images_per_prompt),
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            batch_size=DEFAULT.batch_size if self.batch_size is None else self.batch_size,
            by_memory=self.batch_size is None,
        )


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """Options of a stage that measures with networks whose weights are yours: what is not named is not measured.

    Args:
        sscd: file of an SSCD network, TorchScript or ONNX, for the similarity of copies. TorchScript runs what is in
            the file: give only what you trust.
        sscd_convention: the paper whose preprocessing and figures `sscd` follows; each expects weights of its own.
        clip: folder of a CLIP model, for A_CLIP and CLIP-FID.
        inception: file of a TorchScript Inception with 2048 features, for FID; the same warning holds.
    """

    sscd: str | None = None
    sscd_convention: Literal["nemo", "dcr", "wen", "membench"] = "nemo"
    clip: str | None = None
    inception: str | None = None

    @property
    def weights(self) -> Weights:
        """These files."""
        return Weights(sscd=self.sscd, clip=self.clip, inception=self.inception, sscd_convention=self.sscd_convention)


def stage_names() -> list[str]:
    """The stages, found by walking the package, in alphabetical order."""
    return [found.name for found in pkgutil.iter_modules(stages.__path__) if found.ispkg]


def stage_class(name: str) -> type[Stage]:
    """The one stage of the folder `name`.

    Raises:
        ConfigurationError: if there is no such folder.
    """
    if name not in stage_names():
        raise ConfigurationError(
            f"There is no stage {name!r}",
            expected=f"one of {', '.join(stage_names())}",
            remedy="memtrain --help says what they do",
        )
    module = import_module(f"{stages.__name__}.{name}.stage")
    (found,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Stage) and not isabstract(kind)
    )
    return found


def write_report(folder: str | Path, *, redacted: Path | None = None) -> Path:
    """Write `report.html` from what the stages left in `folder`, or in its `redacted` copy; it can be made again.

    Raises:
        RecordError: if there is nothing to show.
        MemtrainError: if nothing of what is there can be shown; what cannot be shown beside others is said on the page.
    """
    found: list[Section] = []
    errors: list[MemtrainError] = []
    for name in stage_names():
        sections = import_module(f"{stages.__name__}.{name}.section").sections
        try:
            found += sections(redacted or Path(folder))
        except (MemtrainError, *SHAPE) as error:
            errors.append(spoilt(name, Path(folder), error))
    if errors and not found:
        raise errors[0]
    return write_page(Path(folder), [*found, *spoilt_sections(errors)], redacted=redacted is not None)
