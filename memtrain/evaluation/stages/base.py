"""A stage is one folder and one command of `memtrain`; stages are found by walking the package.

The folder `stages/<name>/` holds

- `stage.py` with one :class:`Stage`. Its fields are the options of the command, its docstring is their help;
- `section.py` with `sections(folder)`, which makes the report of the files that the stage left in `folder`;
- other modules that the stage needs. :meth:`Stage.__call__` imports heavy modules, so that other commands start fast.

No stage imports another. Modules that stages share stand in this folder. All stages of a run, or of one `--output`,
write to one folder, so a stage names its files after itself. :func:`memtrain.records.write_json` writes a results file,
or :func:`memtrain.evaluation.stages.results_file.write_results` if the file has a schema. The main options of each
command stand in :mod:`memtrain.cli.help`.
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
    """The input of every stage.

    Attributes:
        pipeline: the model, on its device.
        output: folder to write to; it may hold files of other stages.
        prompts: P prompts, with what is known about them. Plain texts in a list, an array or a column of a data frame
            become prompts about which nothing is known.
        own_images: `(P, 3, H, W)` uint8, the image of each prompt; None unless the prompts come from a run.
        sampling: the settings of the sampling.
        model: the folder, file or hub name of the pipeline.
        run: the run that trained the pipeline; None for another model.
        checkpoints: the checkpoints of the training, in order, if the stage compares several.
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
    """The options and the work of one stage; a subclass is a frozen dataclass whose fields are its options.

    Args:
        run: the folder of a finished training run.
        output: the folder of the results. The default is `evaluation/` in the run folder. With `model` it is
            `runs/STAGE/MODEL`, and for `measure` `runs/evaluation/MODEL`.
        dtype: the number format of the model. `auto` takes float32 on a CPU; on a GPU it takes float16 for a U-Net and
            bfloat16 for a transformer.
    """

    run: str = "runs/tiny"
    output: str | None = None
    dtype: Precision = "auto"

    def check(self) -> None:
        """Refuse options that contradict each other, before anything is loaded."""
        _ = self.sampling  # refuses settings that make no sense

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return Path(self.output or Path(self.run) / "evaluation")

    @property
    def sampling(self) -> Sampling:
        """The settings of the sampling."""
        return DEFAULT

    @abstractmethod
    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Do the work: write files to `given.output`, and print the findings.

        Returns:
            The content of the stage's JSON file; empty if this process did only its part.
        """

    def exit_status(self, results: Mapping[str, Any]) -> int:
        """The exit status of the command by the results; 0 unless the stage has an option for other statuses."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """A stage that evaluates the model of a run, or any model.

    Args:
        model: any model instead of a run: a pipeline folder, a single file, a `.ckpt` of memtrain or a hub name.
        lora: a safetensors file with adapters for that model, in the format of diffusers or kohya, or a folder with
            `pytorch_lora_weights.safetensors`.
        lora_scale: the factor of the adapters.
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
                expected="the base model of the adapters; a run has its own adapters",
                remedy="name the base model with --model",
            )

    @property
    def folder(self) -> Path:
        """The folder of the results: a folder of its own for each model, and without a run for each stage."""
        if self.output is None and self.model is not None:
            return Path("runs") / type(self).__name__.lower() / model_name(self.model, self.lora)
        return super().folder


def model_name(model: str, lora: str | None = None) -> str:
    """A folder name for a model and its adapters; `runs/x/pipeline` gives `x`."""
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
    """A stage that takes prompts, those of a run or your own.

    Args:
        prompts: a file of prompts (.csv, .tsv, .txt, .json, .jsonl, .parquet; text also as .gz), or one prompt. Without
            this option the captions of the run are taken: planted ones count as memorized, held-out ones as not.
        max_prompts: the largest number of a run's planted captions, and of its held-out captions.
    """

    prompts: str | None = None
    max_prompts: int = 150

    def check(self) -> None:
        """Refuse a model without prompts."""
        super().check()
        if self.model is not None and self.prompts is None:
            raise ConfigurationError(
                f"model={self.model!r} without prompts",
                expected="prompts for that model; only a run has captions of its own",
                remedy="name a file of prompts with --prompts, or a run with --run",
            )

    def check_prompts(self, prompts: Sequence[PromptToScore]) -> None:
        """Refuse prompts that the stage would refuse, before a model is loaded."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of a stage that samples images.

    Args:
        images_per_prompt: the number of images for each prompt, with the seeds seed, seed + 1, ...
        seed: the first seed.
        steps: the number of sampling steps.
        guidance_scale: the scale of classifier-free guidance.
        batch_size: the number of images that are sampled at once. The default is 32, or fewer if memory is short.
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
    """Options of a stage that measures with networks of your own; without a network its measure is left out.

    Args:
        sscd: the file of an SSCD network, TorchScript or ONNX, for the similarity of copies. A TorchScript file is
            code that runs: give only files that you trust.
        sscd_convention: the paper whose preprocessing and figures `sscd` follows. Each paper has weights of its own.
        clip: the folder of a CLIP model, for A_CLIP and CLIP-FID.
        inception: the file of a TorchScript Inception with 2048 features, for FID. Give only a file that you trust.
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
            remedy="memtrain --help lists the commands",
        )
    module = import_module(f"{stages.__name__}.{name}.stage")
    (found,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Stage) and not isabstract(kind)
    )
    return found


def write_report(folder: str | Path, *, redacted: Path | None = None) -> Path:
    """Write `report.html` from the files of the stages in `folder`, or in its `redacted` copy; repeat it at will.

    Raises:
        RecordError: if there is nothing to show.
        MemtrainError: if nothing can be shown. If only some results cannot be shown, the page says so.
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
