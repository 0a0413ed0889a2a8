"""memtrain in a training loop of your own: plain PyTorch here, with accelerate or Fabric by one argument more.

    python examples/own_loop.py

Four of the embedded clip-art images stand 41 times each in the data, and nobody says which. memtrain flags all four.
The lines that memtrain adds are marked. With accelerate, give `Guard` the accelerator, after `prepare()` and before
`load_state()`: `Guard(unet, scheduler, accelerator=accelerator)`.

The defaults flag none of them in so short a run: 19 held-out samples and a rate of 1 % give a threshold of 10.87, and
the four have scores of 3.6 to 5.2. So the example asks for 5 %, holds a quarter out (48 samples, which need no assumption
on the tail of the scores), and compares every batch with the base model. Only the four have enough visits for a flag.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.images import to_pixel_values
from memtrain.data.source import open_source
from memtrain.guard import Guard


def main(*, folder: str = "runs/own_loop", steps: int = 200, seed: int = 0, learning_rate: float = 3e-4) -> Guard:
    """Fine-tune on 160 images, four of which are repeated."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline.from_pretrained("assets/tiny-sd", safety_checker=None, torch_dtype=torch.float32)
    unet, scheduler = pipeline.unet.train(), DDPMScheduler.from_config(pipeline.scheduler.config)
    source = open_source("assets/clipart-pd.tar")
    order = random.Random(seed)  # noqa: S311
    chosen = order.sample(range(len(source.samples)), 160)
    repeated = chosen[:4] * 40
    visits = [index for _ in range(9) for index in order.sample(chosen + repeated, 320)]
    images = torch.stack([to_pixel_values(source.load_image(index), 64) for index in chosen])
    captions = [source.samples[index].caption for index in chosen]
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor
        ids = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        text = pipeline.text_encoder(ids)[0]
    row = {index: place for place, index in enumerate(chosen)}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate)
    known = {source.samples[index].key: source.samples[index].caption for index in chosen}

    watched = {"false_positive_rate": 0.05, "heldout_share": 0.25, "paired_every": 1}  # memtrain
    guard = Guard(unet, scheduler, mitigations=[SampleSkipping()], folder=folder, captions=known, **watched)  # memtrain
    with guard:  # memtrain
        for step in range(steps):
            batch = visits[8 * step : 8 * step + 8]
            rows = [row[index] for index in batch]
            noise = torch.randn(latents[rows].shape)
            timesteps = torch.randint(1000, (len(rows),))
            noisy = scheduler.add_noise(latents[rows], noise, timesteps)
            prediction = unet(noisy, timesteps, text[rows]).sample
            names = [source.samples[index].key for index in batch]
            loss = guard.loss(prediction, noise, keys=names)  # memtrain, in place of F.mse_loss(prediction, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                print(f"step {step} of {steps}, loss {loss.item():.3f}")
    copies = {source.samples[index].key for index in chosen[:4]}
    found = guard.calibration.first_flagged
    print(
        f"repeated images flagged: {sorted(found[key] for key in copies & found.keys())} (steps), others flagged: "
        f"{len(found.keys() - copies)}; see {Path(folder)}"
    )
    return guard


if __name__ == "__main__":
    main()
