"""The guard in loops of all kinds: exact gradients, records, checkpoints, several processes, and what it refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch import Tensor

from memtrain.callbacks.attention_regularization import AttentionRegularization
from memtrain.callbacks.sample_replacement import SampleReplacement
from memtrain.errors import ConfigurationError, DataError, ProbeError
from memtrain.guard import Guard
from memtrain.monitoring.heldout_keys import HeldoutKeys
from memtrain.records import read_steps, read_table
from tests.conformance import families
from tests.conftest import ROOT
from tests.guard_loops import FixedWeights, accelerated, batch, denoiser, gates, gradients

NUMBERS = [0, 1, 2, 3, 6]
PLAIN = {"heldout_share": 0.0}


def per_sample(losses: Tensor) -> Tensor:
    return losses.mean(dim=list(range(1, losses.dim())))


def snr_weights(data: dict[str, Any]) -> Tensor:
    snr = compute_snr(DDPMScheduler(), data["timesteps"])
    return snr.clamp(max=5.0) / snr


def mask(data: dict[str, Any]) -> Tensor:
    return torch.rand(len(data["key"]), 1, 8, 8, generator=torch.Generator().manual_seed(1))


def velocity(data: dict[str, Any]) -> Tensor:
    return DDPMScheduler().get_velocity(data["latents"], data["noise"], data["timesteps"])


Case = tuple[Callable[[Guard, Tensor, dict[str, Any]], Tensor], Callable[[Tensor, dict[str, Any], Tensor], Tensor]]
CASES: dict[str, Case] = {
    "mse": (
        lambda guard, p, b: guard.loss(p, b["noise"], keys=b["key"]),
        lambda p, b, g: (g * per_sample(F.mse_loss(p, b["noise"], reduction="none"))).mean(),
    ),
    "min-SNR": (
        lambda guard, p, b: guard.loss(p, b["noise"], keys=b["key"], weights=snr_weights(b)),
        lambda p, b, g: (g * snr_weights(b) * per_sample(F.mse_loss(p, b["noise"], reduction="none"))).mean(),
    ),
    "huber": (
        lambda guard, p, b: guard.loss(p, b["noise"], keys=b["key"], criterion="huber"),
        lambda p, b, g: (g * per_sample(F.huber_loss(p, b["noise"], reduction="none"))).mean(),
    ),
    "l1": (
        lambda guard, p, b: guard.loss(p, b["noise"], keys=b["key"], criterion="l1"),
        lambda p, b, g: (g * per_sample((p - b["noise"]).abs())).mean(),
    ),
    "mask": (
        lambda guard, p, b: guard.loss(p, b["noise"], keys=b["key"], weights=mask(b)),
        lambda p, b, g: (g * per_sample(mask(b) * F.mse_loss(p, b["noise"], reduction="none"))).mean(),
    ),
    "v": (
        lambda guard, p, b: guard.loss(p, velocity(b), keys=b["key"]),
        lambda p, b, g: (g * per_sample(F.mse_loss(p, velocity(b), reduction="none"))).mean(),
    ),
    "own criterion": (
        lambda guard, p, b: guard.loss(
            p, b["noise"], keys=b["key"], criterion=lambda x, y: per_sample((x - y).abs() ** 1.5)
        ),
        lambda p, b, g: (g * per_sample((p - b["noise"]).abs() ** 1.5)).mean(),
    ),
    "preconditioned": (
        lambda guard, p, b: guard.loss(3 * p + b["noisy"], b["latents"], keys=b["key"]),
        lambda p, b, g: (g * per_sample(F.mse_loss(3 * p + b["noisy"], b["latents"], reduction="none"))).mean(),
    ),
    "prior preservation": (
        lambda guard, p, b: (
            guard.loss(p[:2], b["noise"][:2], keys=b["key"][:2])
            + 0.7 * guard.loss(p[2:], b["noise"][2:], keys=b["key"][2:])
        ),
        lambda p, b, g: (
            (g[:2] * per_sample(F.mse_loss(p[:2], b["noise"][:2], reduction="none"))).mean()
            + 0.7 * (g[2:] * per_sample(F.mse_loss(p[2:], b["noise"][2:], reduction="none"))).mean()
        ),
    ),
}


def unweighted(name: str, prediction: Tensor, data: dict[str, Any]) -> Tensor:
    """Each sample's loss, by the case's own formula with all gates but one shut."""
    if name == "min-SNR":
        return per_sample(F.mse_loss(prediction, data["noise"], reduction="none"))
    if name == "prior preservation":
        name = "mse"
    rows = torch.eye(len(prediction)) * len(prediction)
    return torch.stack([CASES[name][1](prediction, data, row) for row in rows])


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_samples_re_weighted_by_hand(name: str, tmp_path: Path) -> None:
    guarded, by_hand = denoiser(), denoiser()
    scheduler = DDPMScheduler()
    with Guard(guarded, scheduler, mitigations=[FixedWeights()], folder=tmp_path, **PLAIN) as guard:
        optimizers = [torch.optim.SGD(model.parameters(), lr=1e-2) for model in (guarded, by_hand)]
        losses = []
        for step in range(6):
            data = batch(NUMBERS, step, scheduler)
            prediction = guarded(data["noisy"], data["timesteps"], data["text"]).sample
            losses.append(unweighted(name, prediction.detach(), data))
            loss = CASES[name][0](guard, prediction, data)
            loss.backward()
            other = by_hand(data["noisy"], data["timesteps"], data["text"]).sample
            expected = CASES[name][1](other, data, gates(data["key"]))
            expected.backward()
            torch.testing.assert_close(loss, expected)
            assert torch.equal(gradients(guarded), gradients(by_hand))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    rows = read_steps(tmp_path / "records")
    recorded = torch.tensor(rows["denoising_loss"].to_pylist()).view(6, -1)
    torch.testing.assert_close(recorded, torch.stack(losses))
    assert rows["weight"].to_pylist() == gates(rows["key"].to_pylist()).tolist()
    assert rows["step"].to_pylist()[:: len(NUMBERS)] == list(range(6))
    base = torch.tensor(rows["base.denoising_loss"].to_pylist()).view(6, -1)
    assert base[1:4].isnan().all()
    # Before the first step, the model is the base model.
    torch.testing.assert_close(base[0], losses[0])


@pytest.mark.parametrize("name", ["mse", "huber", "mask", "preconditioned"])
def test_the_base_models_loss_is_that_of_its_own_prediction(name: str, tmp_path: Path) -> None:
    model, base = denoiser(), denoiser()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Guard(model, folder=tmp_path, paired_every=1, **PLAIN) as guard:
        expected = []
        for step in range(3):
            data = batch(NUMBERS, step, DDPMScheduler())
            CASES[name][0](guard, model(data["noisy"], data["timesteps"], data["text"]).sample, data).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                before = base(data["noisy"], data["timesteps"], data["text"]).sample
            expected.append(unweighted(name, before, data))
    recorded = read_steps(tmp_path / "records")["base.denoising_loss"].to_pylist()
    torch.testing.assert_close(torch.tensor(recorded), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_flow_matching_in_joint_attention(tmp_path: Path) -> None:
    model, by_hand = families.build("sd3"), families.build("sd3")
    call, _ = families.call("sd3", 3)
    target, keys = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), ["0", "1", "2"]
    scheduler = FlowMatchEulerDiscreteScheduler()
    with Guard(model, scheduler, mitigations=[FixedWeights()], folder=tmp_path, **PLAIN) as guard:
        guard.loss(model(**call).sample, target, keys=keys, weights=torch.tensor([1.0, 2.0, 3.0])).backward()
    losses = per_sample(F.mse_loss(by_hand(**call).sample, target, reduction="none"))
    (gates(keys) * torch.tensor([1.0, 2.0, 3.0]) * losses).mean().backward()
    assert torch.equal(gradients(model), gradients(by_hand))


def by_hand_loss(guard: Guard | None, prediction: Tensor, data: dict[str, Any]) -> Tensor:
    if guard is not None:
        return guard.loss(prediction, data["noise"], keys=data["key"])
    losses = per_sample(F.mse_loss(prediction.float(), data["noise"].float(), reduction="none"))
    return (gates(data["key"]) * losses).mean()


@pytest.mark.parametrize(
    "precision", [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}], ids=["plain", "twice", "bf16"]
)
def test_accelerate(precision: dict[str, Any], tmp_path: Path) -> None:
    options = {"mitigations": [FixedWeights()], **PLAIN}
    _, guard, ours = accelerated(
        tmp_path / "guarded", steps=6, loss_of=by_hand_loss, options=options, **precision
    )
    _, _, theirs = accelerated(tmp_path / "plain", steps=6, guarded=False, loss_of=by_hand_loss, **precision)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own, other)
    assert guard is not None
    assert guard.host.step == (3 if "gradient_accumulation_steps" in precision else 6)


def test_a_scaler_that_leaves_steps_out(tmp_path: Path) -> None:
    """Half precision's scaler on the CPU: infinite gradients are no step, and a sample of weight 0 spoils nothing."""
    model, scaler = denoiser(), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with Guard(model, mitigations=[FixedWeights()], folder=tmp_path, **PLAIN) as guard:
        for step, spoilt in enumerate([1, 0, 2]):
            data = batch([0, 1, 2], step, DDPMScheduler())
            data["noise"][spoilt] = torch.inf
            loss = guard.loss(
                model(data["noisy"], data["timesteps"], data["text"]).sample, data["noise"], keys=data["key"]
            )
            assert loss.isfinite() == (spoilt == 1)
            scaler.scale(loss).backward()
            assert gradients(model).isfinite().all() == (spoilt == 1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert guard.host.step == 1


def test_an_adapter_in_a_loop(tmp_path: Path) -> None:
    model, before = denoiser(), denoiser()
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    with Guard(model, DDPMScheduler(), folder=tmp_path, paired_every=1, heldout_share=0.5) as guard:
        for step in range(4):
            data = batch([0, 1, 2, 3, 4, 5], step, DDPMScheduler())
            prediction = model(data["noisy"], data["timesteps"], data["text"]).sample
            guard.loss(prediction, data["noise"], keys=data["key"]).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        expected = per_sample(
            F.mse_loss(before(data["noisy"], data["timesteps"], data["text"]).sample, data["noise"], reduction="none")
        )
    rows = read_steps(tmp_path / "records").to_pylist()[-6:]
    torch.testing.assert_close(torch.tensor([row["base.denoising_loss"] for row in rows]), expected)


def test_extra_forwards_draw_nothing_that_the_loop_would_have_drawn(tmp_path: Path) -> None:
    drawn = []
    for guarded in (True, False):
        model = families.unet(dropout=0.2).train()
        torch.manual_seed(5)
        options = {"paired_every": 1, "heldout_share": 0.5, "calibrate_every": 1}
        guard = Guard(model, DDPMScheduler(), folder=tmp_path, **options) if guarded else None
        for step in range(4):
            data = batch([0, 1, 2, 3, 4, 5], step, DDPMScheduler())
            prediction = model(data["noisy"], data["timesteps"], data["text"]).sample
            if guard is not None:
                guard.loss(prediction, data["noise"], keys=data["key"])
        if guard is not None:
            assert guard.engine.flagging.latents.kept  # type: ignore[union-attr]
            guard.finish()
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)


def test_samples_that_are_held_out_teach_nothing_and_calibrate(tmp_path: Path) -> None:
    _, guard, _ = accelerated(tmp_path, steps=40, options={"heldout_share": 0.3})
    assert guard is not None
    held = HeldoutKeys(0.3)
    rows = read_steps(tmp_path / "records").to_pylist()
    apart = {row["key"] for row in rows if row["key"] in held}
    assert len(apart) > 8
    assert all((row["weight"] == 0) == (row["key"] in apart) for row in rows if not row["flagged"])
    assert set(guard.calibration.heldout.row) <= apart  # type: ignore[union-attr]
    assert not apart & guard.calibration.first_flagged.keys()
    assert len(guard.calibration.highest) >= 8
    assert guard.calibration.threshold < torch.inf
    assert not apart & set(read_table(tmp_path / "records", "evidence")["key"].to_pylist())
    figures = json.loads((tmp_path / "records" / "calibration.json").read_text())
    assert figures["held_out_by_weight"] == len(apart)
    # What is measured again is what was trained on.
    latents = guard.engine.flagging.latents  # type: ignore[union-attr]
    from tests.guard_loops import sample

    assert latents.kept
    for key, kept in latents.kept.items():
        torch.testing.assert_close(kept["latents"], sample(int(key))[0], atol=2e-5, rtol=1e-4)
        assert torch.equal(kept["args"]["2"], sample(int(key))[1])


def test_a_resumed_loop_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, expected, _ = accelerated(tmp_path / "whole", steps=30)
    accelerated(tmp_path / "cut", steps=19, save_at=13, killed=True)
    resumed, guard, _ = accelerated(tmp_path / "cut", steps=30, resume=True)
    assert expected is not None
    assert guard is not None
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # As text: NaN is no equal of itself.
    for name in ("cut", "whole"):
        assert len(read_steps(tmp_path / name / "records")) == 30 * 8
    first, second = (repr(read_steps(tmp_path / name / "records").to_pylist()) for name in ("cut", "whole"))
    assert first == second
    assert guard.calibration.first_flagged == expected.calibration.first_flagged
    assert guard.calibration.highest == expected.calibration.highest
    assert len(guard.calibration.highest) >= 8
    first, second = (
        repr(read_table(tmp_path / name / "records", "evidence").to_pylist()) for name in ("cut", "whole")
    )
    assert first == second


def test_two_processes_come_to_the_same_state(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "tests.guard_loops", str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [process.communicate(timeout=240)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(logs)
    first, second = (torch.load(tmp_path / f"state-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["step"] == second["step"] == 24
    ours, theirs = (state["state"]["calibration"] for state in (first, second))
    assert by_key(ours["samples"]) == by_key(theirs["samples"])
    assert by_key(ours["heldout"]) == by_key(theirs["heldout"])
    for name in ("threshold", "highest", "first_flagged", "peak"):
        assert ours[name] == theirs[name]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
    rows = read_steps(tmp_path / "records")
    assert len(rows) == 24 * 8
    assert set(rows["rank"].to_pylist()) == {0, 1}
    # One process on the same global batches sees the same samples and losses.
    accelerated(tmp_path / "one", steps=24)
    alone = {(row["batch"], row["key"]): row["denoising_loss"] for row in read_steps(tmp_path / "one" / "records").to_pylist()}
    for row in rows.to_pylist():
        assert row["denoising_loss"] == pytest.approx(alone[row["batch"], row["key"]], rel=2e-3)


def by_key(state: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Evidence of each sample; the order in which processes met them differs."""
    found = state["mean"].nan_to_num(7.0).tolist(), state["visits"].tolist(), state["total"].nan_to_num(7.0).tolist()
    return {key: tuple(sum(rows, [])) for key, *rows in zip(state["keys"], *found, strict=True) if any(rows[1])}


def test_the_state_is_plain(tmp_path: Path) -> None:
    accelerated(tmp_path, steps=13, save_at=13)
    state = torch.load(tmp_path / "checkpoint" / "custom_checkpoint_0.pkl", weights_only=True)
    assert state["step"] == 13
    assert state["engine"]["batches_done"] == 13


def test_it_imports_neither_lightning_nor_accelerate() -> None:
    program = "import memtrain.guard, sys; assert 'lightning' not in sys.modules and 'accelerate' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
