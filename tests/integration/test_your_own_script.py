"""docs/your_own_script.md: its changes apply to a script with the lines that they look for, and the result trains."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from memtrain.errors import ConfigurationError
from memtrain.records import read_steps
from tests.conftest import ROOT

COMMAND = runpy.run_path(str(ROOT / "examples" / "guard_diffusers_script.py"), run_name="command")
SCRIPTS = ["train_text_to_image.py", "train_text_to_image_lora.py", "train_text_to_image_sdxl.py"]

STAND_IN = """
import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr
from diffusers.utils.torch_utils import is_compiled_module
from torch.utils.data import DataLoader
from types import SimpleNamespace

from tests.conformance.families import build
from tests.integration.loops import Visits, accelerator as new, scheduler


def main(args, unwrap_model=lambda model: model):
    accelerator = new(project_dir=args.output_dir)
    unet, noise_scheduler = build("unet"), scheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    caption_column = args.caption_column

    def collate_fn(examples):
        pixel_values = torch.stack([example["latents"] for example in examples])
        input_ids = torch.stack([example["text"] for example in examples])
{collate}

    train_dataloader, lr_scheduler = DataLoader(Visits(), batch_size=4, collate_fn=collate_fn), None
    # Prepare everything with our `accelerator`.
    unet, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        unet, optimizer, train_dataloader, lr_scheduler
    )
    for epoch in range(1):
        if True:
            for batch in list(train_dataloader)[:4]:
                noise = torch.randn(4, 4, 8, 8)
                timesteps = torch.randint(1000, (4,))
                noisy_latents = noise_scheduler.add_noise(batch["pixel_values"], noise, timesteps)
                model_pred, target = unet(noisy_latents, timesteps, batch["input_ids"], return_dict=False)[0], noise
                if args.snr_gamma is None:
                    loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
                else:
                    snr = compute_snr(noise_scheduler, timesteps)
                    mse_loss_weights = torch.clamp(snr, max=args.snr_gamma) / snr
                    loss = F.mse_loss(model_pred.float(), target.float(), reduction="none")
                    loss = loss.mean(dim=list(range(1, len(loss.shape)))) * mse_loss_weights
                    loss = loss.mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unet = {end}
"""
COLLATE = '        return {"pixel_values": pixel_values, "input_ids": input_ids}'
COLLATE_SDXL = """        pooled_prompt_embeds = original_sizes = input_ids
        return {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "original_sizes": original_sizes,
        }"""


def stand_in(name: str) -> str:
    """A script of ours with the lines of diffusers' that are looked for."""
    collate = COLLATE_SDXL if "sdxl" in name else COLLATE
    end = "unet.to(torch.float32)" if "lora" in name else "unwrap_model(unet)"
    return STAND_IN.replace("{collate}", collate).replace("{end}", end)


@pytest.mark.parametrize("options", [[], ["--skip", "--snr"]], ids=["watch", "skip"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_changed_script_trains_with_a_guard(
    name: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(stand_in(name), encoding="utf-8")
    output = tmp_path / "patched.py"
    COMMAND["main"]([str(tmp_path / name), "--output", str(output), *options])
    assert f"accelerate launch --cpu --num_processes=1 {output}" in capsys.readouterr().out
    main = runpy.run_path(str(output))["main"]
    main(arguments(tmp_path / "run", snr_gamma=5.0 if options else None))
    keys = read_steps(tmp_path / "run" / "records")["key"].to_pylist()
    assert all(key.startswith("image ") for key in keys)
    assert len(keys) == 16


def arguments(folder: Path, **options: Any) -> Any:
    return type("Arguments", (), {"output_dir": str(folder), "caption_column": "key", "snr_gamma": None, **options})


@pytest.mark.parametrize("name", SCRIPTS)
def test_at_most_five_lines_change_and_they_are_those_of_the_docs(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(stand_in(name), encoding="utf-8")
    COMMAND["main"]([str(tmp_path / name), "--output", str(tmp_path / "patched.py")])
    before, after = (
        path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / name, tmp_path / "patched.py")
    )
    added = [line for line in after if line not in before]
    assert len(added) <= 5
    docs = (ROOT / "docs" / "your_own_script.md").read_text(encoding="utf-8")
    section = docs.split(f"## {name}\n")[1].split("\n## ")[0]
    assert [f"+{line}" for line in added] == [line for line in section.splitlines() if line.startswith("+")]


def test_a_script_with_other_lines_is_left_alone(tmp_path: Path) -> None:
    script, output = tmp_path / SCRIPTS[0], tmp_path / "patched.py"
    script.write_text(stand_in(SCRIPTS[0]).replace("F.mse_loss(model_pred.float()", "F.l1_loss(model_pred.float()"))
    with pytest.raises(ConfigurationError, match=r"has these lines 0 times:\n *loss = F\.mse_loss"):
        COMMAND["main"]([str(script), "--output", str(output)])
    assert not output.exists()
    script.rename(tmp_path / "train.py")
    with pytest.raises(ConfigurationError, match=r"no lines for train\.py"):
        COMMAND["main"]([str(tmp_path / "train.py"), "--output", str(output)])


def test_the_images_to_try_it_on_hold_one_many_times(tmp_path: Path) -> None:
    COMMAND["write_images"](tmp_path)
    files = [path.read_bytes() for path in sorted(tmp_path.glob("*.png"))]
    assert len(files) == 239
    assert files.count(files[0]) == 80
    assert len((tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()) == 239
