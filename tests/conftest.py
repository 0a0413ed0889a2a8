"""What all tests share: no network, and small data made on the spot."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores already; this has to be said before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

# The process that hands tests out to the workers reads this file too, and should not wait for these.
if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from lightning.pytorch import Callback, LightningDataModule, LightningModule

ROOT = Path(__file__).parents[1]
"""The repository."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for folders; files and single tests run here, sooner than workers have started."""
    named = [Path(config.invocation_params.dir, argument.split("::")[0]) for argument in config.args]
    return 0 if all(path.is_file() for path in named) else min(2, os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Torch seeds itself at random in every process: without this, what a test draws is new each time it runs."""
    import torch

    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Again, because a fixture that is shared by several tests draws in the first of them alone."""
    import torch

    torch.manual_seed(1)


def encoded_image(index: int = 0, *, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A file with an image whose upper left pixel tells `index` (of less than 25) in its red channel."""
    image = Image.new("RGB", size, (10 * index, 40, 80)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


class WordTokenizer:
    """One token per word; 1 begins, 2 ends, 0 pads."""

    model_max_length = 6

    def __call__(self, text: Sequence[str], **kwargs: Any) -> dict[str, torch.Tensor]:
        import torch

        assert kwargs == {
            "padding": "max_length",
            "max_length": self.model_max_length,
            "truncation": True,
            "return_tensors": "pt",
        }
        ids = torch.zeros(len(text), self.model_max_length, dtype=torch.long)
        for row, caption in enumerate(text):
            words = [3 + sum(map(ord, word)) % 97 for word in caption.split()][: self.model_max_length - 2]
            ids[row, : len(words) + 2] = torch.tensor([1, *words, 2])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes an image folder: `write_folder(12)`, or with `{file name: caption}` instead of a number."""

    def write(captions: int | Mapping[str, str], *, name: str = "images") -> Path:
        if isinstance(captions, int):
            captions = {f"image_{index:02}.png": f"picture number {index}" for index in range(captions)}
        folder = tmp_path / name
        for index, file in enumerate(captions):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded_image(index))
        rows = [json.dumps({"file_name": file, "text": text}) for file, text in captions.items()]
        folder.mkdir(exist_ok=True)
        (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar: `write_shard({"a.png": ..., "a.txt": b"a cat"})`; a list of pairs may repeat a name."""

    def write(files: Mapping[str, bytes] | Sequence[tuple[str, bytes]], *, name: str = "shard.tar") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for file, content in files.items() if isinstance(files, Mapping) else files:
                member = tarfile.TarInfo(file)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return write


def train(
    folder: Path,
    module: LightningModule,
    data: LightningDataModule,
    *,
    callbacks: Sequence[Callback],
    stop: int,
    resume: bool = False,
) -> None:
    """A short, quiet run with a checkpoint every three steps."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    checkpoints = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, every_n_train_steps=3)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=stop,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[*callbacks, checkpoints],
    )
    trainer.fit(module, data, ckpt_path="last" if resume else None)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session")
def pipeline() -> StableDiffusionPipeline:
    """A random Stable Diffusion. Latents of 8x8, images of 16x16; text matters, because embeddings are large."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
        tokenizer = CLIPTokenizer(
            vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=12
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=16,
                intermediate_size=16,
                projection_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=12,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def pipeline_folder(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random pipeline as a diffusers folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder
