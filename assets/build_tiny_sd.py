"""Build assets/tiny-sd: what comes before and after the two training runs.

    python train.py fit --config configs/tiny_sd/autoencoder.yaml      # 1. the autoencoder
    python assets/build_tiny_sd.py start                               # 2. tokenizer, untrained text encoder and UNet
    python train.py fit --config configs/tiny_sd/denoiser.yaml         # 3. text encoder and UNet together
    python assets/build_tiny_sd.py finish                              # 4. fp16 copy in assets/tiny-sd

Each training run continues after being killed when `--ckpt_path last` is added.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jsonargparse import auto_cli
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from memtrain.data.source import open_source
from memtrain.models.pipeline import Components, load_components

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(captions: list[str], vocabulary: int, folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from `captions`, saved in `folder`."""
    backend = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(alphabet) - 2,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    learned = json.loads(backend.to_str())["model"]
    # Every byte can end a word, also one that no caption ends with, so that no text is unknown.
    ends = [byte + "</w>" for byte in alphabet]
    tokens = list(dict.fromkeys([*alphabet, *ends, *sorted(learned["vocab"], key=learned["vocab"].get), BOS, EOS]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learned["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def start(
    captions: str = "assets/emoji-train.tar",
    autoencoder: str = "runs/tiny_sd_autoencoder/vae",
    output: str = "runs/tiny_sd_start",
    vocabulary: int = 2048,
    text_width: int = 128,
    text_layers: int = 4,
    widths: tuple[int, ...] = (64, 96, 96, 96),
    seed: int = 0,
) -> None:
    """Learn the tokenizer and write a pipeline folder with an untrained text encoder and UNet.

    Args:
        captions: data whose captions the tokenizer is learned from.
        autoencoder: folder of the trained autoencoder.
        output: folder to write.
        vocabulary: tokens at most, the two special ones included.
        text_width: width of the text encoder.
        text_layers: its layers.
        widths: channels per UNet level.
        seed: of the initial weights.
    """
    torch.manual_seed(seed)
    folder = Path(output)
    texts = [sample.caption for sample in open_source(captions).samples]
    tokenizer = build_tokenizer(texts, vocabulary, folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(autoencoder)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text_width,
            intermediate_size=4 * text_width,
            projection_dim=text_width,
            num_hidden_layers=text_layers,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    channels = vae.config.latent_channels
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    Components(unet, vae, text_encoder, tokenizer, scheduler).pipeline().save_pretrained(folder)
    sizes = {
        "unet": sum(p.numel() for p in unet.parameters()),
        "text encoder": sum(p.numel() for p in text_encoder.parameters()),
        "autoencoder": sum(p.numel() for p in vae.parameters()),
    }
    print(f"{folder}: {len(tokenizer)} tokens, parameters {sizes}, fp16 {sum(sizes.values()) * 2 / 1e6:.1f} MB")


def finish(trained: str = "runs/tiny_sd/pipeline", output: str = "assets/tiny-sd") -> None:
    """Write the trained pipeline in fp16 safetensors.

    Args:
        trained: pipeline folder of the training run.
        output: folder to write.
    """
    pipeline: StableDiffusionPipeline = load_components(trained).pipeline()
    pipeline.to(torch.float16)
    pipeline.save_pretrained(output)
    size = sum(file.stat().st_size for file in Path(output).rglob("*") if file.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    auto_cli([start, finish])
