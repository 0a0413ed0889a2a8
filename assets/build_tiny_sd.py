"""Build assets/tiny-sd: what comes before and after the two training runs.

    python train.py fit --config configs/tiny_sd/autoencoder.yaml      # 1. the autoencoder
    python assets/build_tiny_sd.py augment                             # 2. variants of the images and captions
    python assets/build_tiny_sd.py start                               # 3. tokenizer, untrained text encoder and UNet
    python train.py fit --config configs/tiny_sd/denoiser.yaml         # 4. text encoder and UNet together
    python assets/build_tiny_sd.py finish                              # 5. fp16 copy in assets/tiny-sd
    python assets/build_tiny_sd.py measure                             # 6. the figures of its model card

Each training run continues after being killed when `--ckpt_path last` is added.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jsonargparse import auto_cli
from PIL import Image, ImageOps
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from webdataset import TarWriter

from memtrain.data.images import to_pixel_values
from memtrain.data.source import open_source
from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.measures.replication import replication, reproduction_threshold
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.pixels import from_uint8, to_uint8
from memtrain.models.pipeline import ddim, load_pipeline

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def augment(
    source: str = "assets/emoji-train.tar",
    output: str = "runs/tiny_sd_augmented.tar",
    variants: int = 8,
    seed: int = 0,
) -> None:
    """Write variants of each sample, so that the denoiser learns what words mean rather than which caption is which.

    Every second variant is mirrored. The first two keep image and caption; the others are drawn up to 15 % smaller at a
    random place, and their captions keep each part after the name with probability 0.7, the keywords in random order.

    Args:
        source: captioned images.
        output: shard to write.
        variants: per sample.
        seed: of the choices.
    """
    data = open_source(source)
    choose = random.Random(seed)  # noqa: S311
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(output) as shard:
        for row, sample in enumerate(data.samples):
            original = data.load_image(row)
            for variant in range(variants):
                image = ImageOps.mirror(original) if variant % 2 else original
                caption = sample.caption
                if variant >= 2:
                    name, *parts = caption.split(", ")
                    kept = [part for part in parts if choose.random() < 0.7]
                    choose.shuffle(kept)
                    caption = ", ".join([name, *sorted(kept, key=lambda part: not part.startswith("in "))])
                    side = round(image.width * choose.uniform(0.85, 1.0))
                    free = image.width - side
                    canvas = Image.new("RGB", image.size, "white")
                    small = image.resize((side, side), Image.Resampling.LANCZOS)
                    canvas.paste(small, (choose.randint(0, free), choose.randint(0, free)))
                    image = canvas
                png = io.BytesIO()
                image.save(png, "PNG")
                shard.write({"__key__": f"{sample.key}_{variant}", "png": png.getvalue(), "txt": caption})


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
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=ddim(scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    sizes = {
        "unet": sum(p.numel() for p in unet.parameters()),
        "text encoder": sum(p.numel() for p in text_encoder.parameters()),
        "autoencoder": sum(p.numel() for p in vae.parameters()),
    }
    print(f"{folder}: {len(tokenizer)} tokens, parameters {sizes}, fp16 {sum(sizes.values()) * 2 / 1e6:.1f} MB")


def finish(trained: str = "runs/tiny_sd/pipeline", output: str = "assets/tiny-sd") -> None:
    """Write the trained pipeline in fp16 safetensors.

    transformers loads a text encoder in the type that its configuration names, diffusers loads the other parts in fp32
    whatever their files hold. The configuration therefore names fp32, so that a pipeline loaded without a type has one.

    Args:
        trained: pipeline folder of the training run.
        output: folder to write.
    """
    pipeline = load_pipeline(trained)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(output)
    config = Path(output) / "text_encoder" / "config.json"
    named = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in Path(output).rglob("*") if file.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")


def measure(
    model: str = "assets/tiny-sd",
    training: str = "assets/emoji-train.tar",
    heldout: str = "assets/emoji-heldout.tar",
    prompts: int = 100,
    seeds: int = 2,
    guidance_scale: float = 2.5,
    samples: str = "assets/tiny-sd/samples.png",
) -> None:
    """Print the model card's figures as JSON, and draw samples for held-out and training prompts.

    Args:
        model: pipeline folder.
        training: the data it was trained on.
        heldout: data with other concepts.
        prompts: training prompts whose images are looked for; the held-out ones set the threshold.
        seeds: images per prompt.
        guidance_scale: of classifier-free guidance.
        samples: picture to write; each image stands above two generations for its caption, held-out ones first.
    """
    pipeline = load_pipeline(model)
    pixels, captions = {}, {}
    for name, path in (("training", training), ("heldout", heldout)):
        source = open_source(path)
        images = [to_pixel_values(source.load_image(index), 64) for index in range(len(source))]
        pixels[name] = to_uint8(torch.stack(images))
        captions[name] = [sample.caption for sample in source.samples]
    with torch.no_grad():
        original = from_uint8(pixels["heldout"])
        decoded = torch.cat([pipeline.vae(part).sample.clamp(-1, 1) for part in original.split(64)])
    error = ((decoded - original) / 2).square().flatten(1).mean(1)
    loss = heldout_loss(pipeline, pixels["heldout"], captions=captions["heldout"])

    train_rows = torch.randperm(len(captions["training"]), generator=torch.Generator().manual_seed(0))[:prompts]
    held_rows = torch.randperm(len(captions["heldout"]), generator=torch.Generator().manual_seed(0))[:100]
    best = {}
    sheet = Image.new("RGB", (64 * 20, 64 * 6 + 8), "white")
    for name, rows, top in (("heldout", held_rows, 0), ("training", train_rows, 64 * 3 + 8)):
        trace = generate(
            pipeline,
            [captions[name][row] for row in rows],
            sampling=Sampling(
                seeds=range(seeds), steps=40, guidance_scale=guidance_scale, batch_size=50, size=(64, 64)
            ),
        )
        own = rows if name == "training" else torch.full_like(rows, -1)
        best[name] = replication(trace.images, pixels[name][rows], training=pixels["training"], own_index=own).best
        print(name)
        for column in range(20):
            shown = (pixels[name][rows[column]], *trace.images[column, :2])
            for row, image in enumerate(shown):
                sheet.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (64 * column, top + 64 * row))
            print(f"{column + 1:2} {captions[name][rows[column]]}")
    sheet.save(samples)
    threshold = reproduction_threshold(best["heldout"], 0.01)
    figures = {
        "autoencoder_psnr_heldout_db": round(float((-10 * error.log10()).mean()), 2),
        "denoising_loss_heldout": round(float(loss.mean()), 4),
        "denoising_loss_heldout_standard_error": round(float(loss.std() / len(loss) ** 0.5), 4),
        "training_prompts": prompts,
        "images_per_prompt": seeds,
        "reproduced": int((best["training"] < threshold).sum()),
        "reproduction_threshold": round(threshold, 3),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    auto_cli([augment, start, finish, measure])
