"""Images while training goes on: what is shown, that training does not notice, and what is refused."""

from __future__ import annotations

import copy
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from PIL import Image

from memtrain.callbacks.base import Callback
from memtrain.callbacks.image_grid import GridRow, image_grid
from memtrain.callbacks.memorization_sinks import MemorizationSinks
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.paused_training import paused_training
from memtrain.callbacks.sample_images import SampleImages, read_prompt_file
from memtrain.callbacks.suspicious_samples import SuspiciousSample, most_suspicious
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import generate
from memtrain.functional.pixels import to_uint8
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.training.execution import Execution
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import Foreign, fit
from tests.conftest import ROOT, encoded_image

PROMPTS = ["a b", "c d"]


class Board(Logger):
    """Keeps images as TensorBoard's writer takes them, or as W&B's logger does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.images, self.figures = kind, {}, []
        if kind == "wandb":
            self.log_image = self._log_image

    name, version = "board", "0"

    @property
    def experiment(self) -> Any:
        return self if self.kind == "tensorboard" else None

    def add_image(self, name: str, image: Any, step: int, *, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images[name, step] = image

    def _log_image(self, key: str, images: list[Any], step: int) -> None:
        self.images[key, step] = np.asarray(images[0])

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.figures.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Draws(Callback):
    """Draws from every random state in each batch, so that a change of one shows."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        assert pl_module.denoiser.training


class Run:
    """A run of eight steps."""

    def __init__(self, folder: Path, images: Path, pretrained: Path, *callbacks: Any, **options: Any) -> None:
        seed_everything(0)
        execution = Execution(gradient_checkpointing=True)
        self.module = TextToImageModule(str(pretrained), learning_rate=1e-2, ema_decay=0.5, execution=execution)
        self.data = TextImageDataModule(
            str(images),
            resolution=16,
            batch_size=4,
            families="off",
            heldout_fraction=0.34,
            duplicates=Duplicates(count=2, repeats=6),
            cache_latents=True,
        )
        settings = WatchSettings(reference_timesteps=(200, 600), reference_draws=1, calibrate_every=2, heldout_batch=3)
        self.monitor = MemorizationMonitor(
            minimum_visits=2,
            false_positive_rate=0.1,
            reference_folder=str(folder.parent / "profiles"),
            settings=settings,
        )
        self.draws, self.sinks, self.folder = Draws(), MemorizationSinks(), folder
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            log_every_n_steps=1,
            callbacks=[self.draws, self.sinks, self.monitor, *callbacks],
            **{"max_steps": 8, "logger": False, **options},
        )
        trainer.fit(self.module, self.data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> tuple[Run, Run, list[Board], Path]:
    """A run with images, one without, and what two loggers got."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "data").mkdir()
    rows = []
    for number in range(24):
        (folder / "data" / f"{number:02}.png").write_bytes(encoded_image(number))
        rows.append(f'{{"file_name": "{number:02}.png", "text": "../{"abcdefgh"[number % 8]} <b> {number}"}}')
    (folder / "data" / "metadata.jsonl").write_text("\n".join(rows))
    boards = [Board("tensorboard"), Board("wandb")]
    images = SampleImages(PROMPTS, every=3, suspicious=2, seeds=[0, 1], steps=2, batch_size=3)
    with_images = Run(folder / "with", folder / "data", pipeline_folder, images, logger=boards)
    return with_images, Run(folder / "without", folder / "data", pipeline_folder), boards, folder


def test_training_does_not_notice(made: tuple[Run, Run, list[Board], Path]) -> None:
    """Under averaged weights, gradient checkpointing and a mitigation whose hooks edit the denoiser."""
    ours, plain, _, _ = made
    assert len(plain.draws.drawn) == 8
    assert ours.draws.drawn == plain.draws.drawn
    for one, other in zip(ours.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert read_steps(ours.folder / "records").equals(read_steps(plain.folder / "records"))
    for name in ("samples", "highest", "threshold"):
        found, expected = (run.monitor.calibration.state_dict()[name] for run in (ours, plain))
        assert str(found) == str(expected), name


def test_images_come_every_few_steps_and_at_the_end(made: tuple[Run, Run, list[Board], Path]) -> None:
    ours, _, boards, _ = made
    names = {f"step-{step:06}-{part}.png" for step in (3, 6, 8) for part in ("prompts", "suspicious")}
    assert {path.name for path in (ours.folder / "images").iterdir()} == names | {"step-000000-prompts.png"}
    for board in boards:
        assert len(board.images) == 7
        for (name, step), image in board.images.items():
            part = name.removeprefix("samples/")
            saved = np.asarray(Image.open(ours.folder / "images" / f"step-{step:06}-{part}.png"))
            assert np.array_equal(image, saved)


def test_curves_are_logged(made: tuple[Run, Run, list[Board], Path]) -> None:
    figures = made[2][0].figures
    shares = [one["memorization/visits_flagged"] for one in figures if "memorization/visits_flagged" in one]
    rows = read_steps(made[0].folder / "records").to_pylist()
    seen = {step: [row["flagged"] for row in rows if row["batch"] == step] for step in range(8)}
    assert shares == pytest.approx([sum(seen[step]) / 4 for step in range(8)])
    highest = [one["memorization/highest_score"] for one in figures if "memorization/highest_score" in one]
    assert highest and all(np.isfinite(highest))


def test_the_last_grid_shows_what_the_final_model_makes(made: tuple[Run, Run, list[Board], Path]) -> None:
    ours, _, _, _ = made
    callback = SampleImages(PROMPTS, seeds=[0, 1], steps=2, batch_size=3)
    with ours.module.averaged_weights(), ours.sinks.exporting(ours.module.denoiser):
        pipeline = ours.module.export_pipeline()
        images = generate(pipeline, PROMPTS, sampling=callback.sampling).images
    rows = [GridRow([prompt], list(images[row])) for row, prompt in enumerate(PROMPTS)]
    expected = np.asarray(image_grid(rows, titles=["seed 0", "seed 1"]))
    saved = np.asarray(Image.open(ours.folder / "images" / "step-000008-prompts.png"))
    # In other batches, so equal but for rounding; without the sinks' export they differ by more.
    assert np.abs(expected.astype(int) - saved.astype(int)).max() <= 2


def test_the_most_suspicious_samples_are_those_of_the_highest_scores(
    made: tuple[Run, Run, list[Board], Path],
) -> None:
    ours, _, _, _ = made
    calibration, data = ours.monitor.calibration, ours.data
    before = copy.deepcopy(calibration.state_dict())
    found = most_suspicious(calibration, data, 3)
    assert str(calibration.state_dict()) == str(before), "asking changes nothing"
    known = [sample.key for sample in data.train_dataset.samples if sample.key in calibration]
    ready = [key for key in known if calibration.counted_visits([key])[0] >= 2]
    ranked = sorted(ready, key=lambda key: -float(calibration.scores([key])))
    assert [sample.key for sample in found if sample.judged] == ranked[:3][: sum(one.judged for one in found)]
    for sample in found:
        row = [one.key for one in data.train_dataset.samples].index(sample.key)
        assert torch.equal(sample.image, to_uint8(data.train_dataset.pixel_values(row)))
        assert sample.flagged == calibration.first_flagged.get(sample.key)


def test_what_is_written_beside_a_sample() -> None:
    sample = SuspiciousSample("k", "", 3.0, float("inf"), None, True, torch.zeros(3, 2, 2))
    assert sample.lines() == ["k", "score 3.00, no threshold yet: not flagged", "(no caption)"]


def test_everything_is_as_before_afterwards(pipeline_folder: Path) -> None:
    module = TextToImageModule(str(pipeline_folder), ema_decay=0.5)
    part = module.denoiser.mid_block.eval()
    kept = module.parts.export().scheduler
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.callbacks = []
    state = torch.get_rng_state()
    with paused_training(trainer, module) as pipeline:
        assert pipeline.scheduler is not kept
        pipeline.scheduler.set_timesteps(3)
        pipeline.unet.train()
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(one.training for one in part.modules()) and module.denoiser.training
    assert pipeline.scheduler.num_inference_steps is None


@pytest.mark.slow
def test_a_compiled_denoiser_is_not_compiled_for_images(pipeline_folder: Path) -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    module = TextToImageModule(str(pipeline_folder), ema_decay=None)
    module.denoiser.compile(backend=backend)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.callbacks = []
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.randn(2, 12, 16)
    module.denoiser(*inputs).sample.sum().backward()
    count = len(compiled)
    assert count > 0
    for size in (1, 3):
        with paused_training(trainer, module) as pipeline:
            settings = SampleImages(["a"], steps=1, seeds=list(range(size))).sampling
            generate(pipeline, ["a"], sampling=settings)
    module.denoiser(*inputs).sample.sum().backward()
    assert len(compiled) == count


@pytest.mark.slow
def test_two_processes_share_the_images(made: tuple[Run, Run, list[Board], Path], pipeline_folder: Path) -> None:
    """Neither waits for the other for ever, and the prompts' images are those of one process."""
    folder = made[3]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(folder / "pair"), str(folder / "data"), str(pipeline_folder)],
            cwd=ROOT,
            env={
                **os.environ,
                **common,
                "RANK": rank,
                "LOCAL_RANK": rank,
                "MASTER_PORT": port,
                "TORCHELASTIC_RUN_ID": "x",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for name in ("step-000000-prompts.png", "step-000004-prompts.png", "step-000004-suspicious.png"):
        assert (folder / "pair" / "images" / name).is_file()
    # Before training both runs have the same weights; three prompts over two processes.
    ours, alone = (
        np.asarray(Image.open(folder / run / "images" / "step-000000-prompts.png")).astype(int)
        for run in ("pair", "with")
    )
    assert np.abs(ours[: len(alone) - 12] - alone[:-12]).max() <= 2


PAIR = """
import sys
from pathlib import Path
from memtrain.callbacks.sample_images import SampleImages
from tests.callbacks.test_sample_images import PROMPTS, Run
images = SampleImages([*PROMPTS, "e f"], every=2, suspicious=2, seeds=[0, 1], steps=2, batch_size=3)
folder, data, pretrained = map(Path, sys.argv[1:])
Run(folder, data, pretrained, images, max_steps=4, strategy="ddp", devices=2)
"""


def test_a_module_that_cannot_be_sampled_with_is_refused(pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no export_pipeline and no averaged_weights"):
        fit(Foreign(pipeline.unet), tmp_path, [SampleImages(["a"])])


def test_nothing_to_sample_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing to sample"):
        SampleImages(suspicious=0)
    with pytest.raises(ConfigurationError, match="every=0"):
        SampleImages(["a"], every=0)
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=[callback := SampleImages()])
    with pytest.raises(ConfigurationError, match="MemorizationMonitor"):
        callback.setup(trainer, TextToImageModule(str(pipeline_folder)), "fit")


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red bird\n\n  two boats \n", encoding="utf-8")
    assert SampleImages(str(tmp_path / "prompts.txt")).prompts == ["a red bird", "two boats"]
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("empty.txt", "no prompt"), ("missing.txt", "cannot be read")):
        with pytest.raises(ConfigurationError, match=message):
            SampleImages(str(tmp_path / name))


def test_a_grid_shows_images_as_they_are_and_cuts_text() -> None:
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    page = np.asarray(image_grid([GridRow(["$x$ \u732b \u0000 " + "long " * 80], [image, None])]))
    doubled = image.repeat_interleave(2, 1).repeat_interleave(2, 2).permute(1, 2, 0).numpy()
    places = [
        (y, x)
        for y in range(page.shape[0] - 127)
        for x in range(8)
        if np.array_equal(page[y : y + 128, x : x + 128], doubled)
    ]
    assert len(places) == 1
    assert page.shape[1] <= 600
    assert np.asarray(image_grid([GridRow([], [torch.zeros(3, 1000, 500)])])).shape[0] < 300


def test_prompts_of_a_table_are_its_column(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("prompt,memorized\na fox,1\n,0\n")
    assert read_prompt_file(str(tmp_path / "prompts.csv")) == ["a fox"]
    (tmp_path / "prompts.csv").write_text('prompt\n"a fox\n')
    with pytest.raises(ConfigurationError, match="line 2: a quote has no end"):
        read_prompt_file(str(tmp_path / "prompts.csv"))
