"""A LoRA trained with accelerate and watched by a guard: the two lines of memtrain in a script of diffusers' kind.

    accelerate launch --cpu --num_processes=1 examples/accelerate_lora.py
    python examples/accelerate_lora.py

The data are 120 embedded clip-art pictures, and 60 more files that repeat the first of them. The lines that memtrain
adds are marked. The guard stands after `prepare()`, because it watches the model that the loop calls, and before
`load_state()`, because a checkpoint holds the guard's state too.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch.utils.data import DataLoader

from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.images import to_pixel_values
from memtrain.data.source import open_source
from memtrain.guard import Guard


def rows(pipeline: StableDiffusionPipeline, *, pictures: int = 120, copies: int = 60) -> list[dict]:
    """The data: latents and text embeddings, computed once, and the key that names each picture.

    Args:
        pipeline: the model that encodes the pictures and the captions.
        pictures: the number of different pictures.
        copies: the number of further visits of the first picture.
    """
    source = open_source("assets/clipart-pd.tar")
    chosen = source.samples[:pictures]
    images = torch.stack([to_pixel_values(source.load_image(index), 64) for index in range(pictures)])
    ids = pipeline.tokenizer(
        [one.caption for one in chosen], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor
        text = pipeline.text_encoder(ids)[0]
    made = [{"key": chosen[at].key, "latents": latents[at], "text": text[at]} for at in range(pictures)]
    return made + made[:1] * copies


def main(*, folder: str = "runs/accelerate_lora", steps: int = 150) -> Guard:
    """Train the adapters, skip what is flagged, and write the file that `pipe.load_lora_weights` reads.

    Args:
        folder: the run folder.
        steps: the number of optimizer steps.
    """
    torch.manual_seed(0)
    accelerator = Accelerator(project_dir=folder)
    pipeline = StableDiffusionPipeline.from_pretrained("assets/tiny-sd", safety_checker=None, torch_dtype=torch.float32)
    unet, scheduler = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    optimizer = torch.optim.AdamW([one for one in unet.parameters() if one.requires_grad], lr=2e-3)
    data = rows(pipeline)
    captions = {one.key: one.caption for one in open_source("assets/clipart-pd.tar").samples}
    loader = DataLoader(data, batch_size=12, shuffle=True, drop_last=True)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)

    # memtrain:
    guard = Guard(unet, scheduler, accelerator=accelerator, mitigations=[SampleSkipping()], captions=captions)
    step = 0
    while step < steps:
        for batch in loader:
            noise = torch.randn_like(batch["latents"])
            timesteps = torch.randint(1000, (len(noise),), device=noise.device)
            noisy = scheduler.add_noise(batch["latents"], noise, timesteps)
            prediction = unet(noisy, timesteps, batch["text"]).sample
            loss = guard.loss(prediction, noise, keys=batch["key"])  # memtrain, in place of F.mse_loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == steps:
                break
    guard.finish()  # memtrain: the records, flagged.csv and the summary
    adapters = get_peft_model_state_dict(accelerator.unwrap_model(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=adapters)
    found = guard.calibration.first_flagged
    print(f"The repeated picture was flagged at step {found.get(data[0]['key'], 'none')}; see {Path(folder)}")
    return guard


if __name__ == "__main__":
    main()
