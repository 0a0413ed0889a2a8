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
from memtrain.evidence.kept_arrays import unpacked_counts, unpacked_names
from memtrain.guard import Guard
from memtrain.monitoring.heldout_keys import HeldoutKeys
from memtrain.records import read_steps, read_table
from tests.conformance import families
from tests.conftest import ROOT
from tests.guard_loops import FixedWeights, accelerated, batch, denoiser, gates, gradients, sample

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
    _, guard, ours = accelerated(tmp_path / "guarded", steps=6, loss_of=by_hand_loss, options=options, **precision)
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
    assert latents.kept
    for key, kept in latents.kept.items():
        torch.testing.assert_close(kept["latents"], sample(int(key))[0], atol=2e-5, rtol=1e-4)
        assert torch.equal(kept["args"]["2"], sample(int(key))[1])


def test_too_few_that_are_held_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accelerated(tmp_path, steps=6, options={"heldout_share": 0.1})
    assert "A threshold needs 8 of them, so raise heldout_share" in capsys.readouterr().out


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
    first, second = (repr(read_table(tmp_path / name / "records", "evidence").to_pylist()) for name in ("cut", "whole"))
    assert first == second


@pytest.mark.slow
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
    states = [
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole-0", "whole-1", "cut-0", "cut-1")
    ]
    for other in states[1:]:
        assert states[0]["step"] == other["step"] == 24
        ours, theirs = (state["state"]["calibration"] for state in (states[0], other))
        assert by_key(ours["samples"]) == by_key(theirs["samples"])
        assert by_key(ours["heldout"]) == by_key(theirs["heldout"])
        for name in ("threshold", "first_flagged"):
            assert ours[name] == theirs[name]
        for one, same in ((ours["highest"]["scores"], theirs["highest"]["scores"]), (ours["peak"], theirs["peak"])):
            assert torch.equal(one.sort().values, same.sort().values)
        for name, value in states[0]["weights"].items():
            assert torch.equal(value, other["weights"][name])
    assert len(ours["highest"]["scores"]) >= 8
    rows = read_steps(tmp_path / "whole" / "records").to_pylist()
    assert len(rows) == 24 * 8
    assert {row["rank"] for row in rows} == {0, 1}
    assert repr(read_steps(tmp_path / "cut" / "records").to_pylist()) == repr(rows)
    # One process on the same global batches sees the same samples and losses.
    accelerated(tmp_path / "one", steps=6)
    alone = {(row["batch"], row["key"]): row for row in read_steps(tmp_path / "one" / "records").to_pylist()}
    for row in rows[: 6 * 8]:
        assert row["denoising_loss"] == pytest.approx(alone[row["batch"], row["key"]]["denoising_loss"], rel=2e-3)


def by_key(state: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Evidence of each sample; the order in which processes met them differs."""
    parts = [unpacked_counts(state["visits"]), state["mean"], state["total"]]
    return {
        key: tuple(value for row in rows for value in row)
        for key, *rows in zip(unpacked_names(state["names"]), *(part.tolist() for part in parts), strict=True)
        if any(rows[0])
    }


def test_the_state_is_plain(tmp_path: Path) -> None:
    accelerated(tmp_path, steps=13, save_at=13)
    state = torch.load(tmp_path / "checkpoint" / "custom_checkpoint_0.pkl", weights_only=True)
    assert state["step"] == 13
    assert state["engine"]["batches_done"] == 13


def test_it_imports_neither_lightning_nor_accelerate() -> None:
    program = "import memtrain.guard, sys; assert 'lightning' not in sys.modules and 'accelerate' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def step_of(model: Any, numbers: list[int] = NUMBERS, step: int = 0) -> tuple[Tensor, dict[str, Any]]:
    data = batch(numbers, step, DDPMScheduler())
    return model(data["noisy"], data["timesteps"], data["text"]).sample, data


def test_a_watched_batch_is_gated_on_its_gradient(tmp_path: Path) -> None:
    """The loop keeps its own loss; accumulation's and the scaler's factors are named."""
    guarded, by_hand = denoiser(), denoiser()
    with Guard(guarded, mitigations=[FixedWeights()], folder=tmp_path, **PLAIN) as guard:
        for step in range(5):
            data = batch(NUMBERS, step, DDPMScheduler())
            with guard.watch(data, loss_scale=0.5):
                loss = F.mse_loss(guarded(data["noisy"], data["timesteps"], data["text"]).sample, data["noise"])
                guard.before_backward(loss)
                (loss / 2).backward()
            prediction = by_hand(data["noisy"], data["timesteps"], data["text"]).sample
            losses = per_sample(F.mse_loss(prediction, data["noise"], reduction="none"))
            ((gates(data["key"]) * losses).mean() / 2).backward()
            torch.testing.assert_close(gradients(guarded), gradients(by_hand))
    recorded = read_steps(tmp_path / "records")["denoising_loss"].to_pylist()[-len(NUMBERS) :]
    torch.testing.assert_close(torch.tensor(recorded), losses.detach())


def test_a_watched_loss_that_is_no_mean_is_refused(tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path, **PLAIN)
    with pytest.raises(ConfigurationError, match=r"The losses read from the gradient do not agree with the loss"):
        for step in range(9):
            data = batch(NUMBERS, step, DDPMScheduler())
            with guard.watch(data):
                loss = 3 * F.mse_loss(model(data["noisy"], data["timesteps"], data["text"]).sample, data["noise"])
                guard.before_backward(loss)
                loss.backward()
    guard.close()


def test_a_watched_loss_has_to_be_shown(tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path, **PLAIN)
    data = batch(NUMBERS, 0, DDPMScheduler())
    with pytest.raises(ProbeError, match="was not shown"), guard.watch(data):
        F.mse_loss(model(data["noisy"], data["timesteps"], data["text"]).sample, data["noise"]).backward()
    guard.close()


def test_a_watched_batch_whose_loss_is_handed_over(tmp_path: Path) -> None:
    guarded, by_hand = denoiser(), denoiser()
    with Guard(guarded, mitigations=[FixedWeights()], folder=tmp_path, **PLAIN) as guard:
        data = batch(NUMBERS, 0, DDPMScheduler())
        with guard.watch(data):
            loss = guard.loss(guarded(data["noisy"], data["timesteps"], data["text"]).sample, data["noise"])
            guard.before_backward(loss)
            loss.backward()
    prediction, data = step_of(by_hand)
    CASES["mse"][1](prediction, data, gates(data["key"])).backward()
    assert torch.equal(gradients(guarded), gradients(by_hand))


def test_a_penalty_is_added_to_the_loss(tmp_path: Path) -> None:
    class Penalty(FixedWeights):
        def penalty(self, observation: Any, flags: Any) -> Tensor:
            return observation.noisy_latents.flatten(1).mean(1)

    model = denoiser()
    with Guard(model, mitigations=[Penalty()], folder=tmp_path, **PLAIN) as guard:
        prediction, data = step_of(model)
        loss = guard.loss(prediction, data["noise"], keys=data["key"])
    expected = CASES["mse"][1](prediction, data, gates(data["key"])) + data["noisy"].mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ["mse", "preconditioned"])
def test_fabric(name: str, tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    found = []
    for guarded in (True, False):
        model = denoiser()
        model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1e-2))
        guard = None
        if guarded:
            guard = Guard(
                model, DDPMScheduler(), accelerator=fabric, mitigations=[FixedWeights()], folder=tmp_path, **PLAIN
            )
        for step in range(5):
            prediction, data = step_of(model, step=step)
            by_hand = CASES[name][1](prediction, data, gates(data["key"]))
            fabric.backward(by_hand if guard is None else CASES[name][0](guard, prediction, data))
            found.append(gradients(model))
            optimizer.step()
            optimizer.zero_grad()
        if guard is not None:
            guard.finish()
            assert guard.host.step == 5
    for ours, theirs in zip(found[:5], found[5:], strict=True):
        assert torch.equal(ours, theirs)
    rows = read_steps(tmp_path / "records").to_pylist()
    assert all(row["base.denoising_loss"] == row["denoising_loss"] for row in rows[: len(NUMBERS)])


def test_transformers_trainer(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Watched(Trainer):
        guard: Guard | None = None

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            if self.guard is None:
                self.guard = Guard(model, DDPMScheduler(), folder=tmp_path / "guard")
            prediction = model(inputs["noisy"], inputs["timesteps"], inputs["text"]).sample
            return self.guard.loss(prediction, inputs["noise"], keys=inputs["key"])

    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Watched(
        denoiser(),
        arguments,
        train_dataset=[0, 1, 2, 3, 4, 5, 6, 7] * 6,
        data_collator=lambda numbers: batch(numbers, 0, DDPMScheduler()),
    )
    trainer.train()
    assert trainer.guard is not None
    trainer.guard.finish()
    rows = read_steps(tmp_path / "guard" / "records")
    assert len(rows) == 6 * 2 * 4
    assert trainer.guard.host.step == 6


# Users' mistakes


def test_two_guards(tmp_path: Path) -> None:
    model = denoiser()
    first = Guard(model, folder=tmp_path)
    with pytest.raises(ConfigurationError, match="This denoiser has a guard already"):
        Guard(torch.compile(model, backend="eager"), folder=tmp_path)
    first.close()
    Guard(model, folder=tmp_path).close()


def test_no_denoiser(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="0 denoisers found"):
        Guard(torch.nn.Linear(2, 2), folder=tmp_path)


def test_a_guard_before_prepare(tmp_path: Path) -> None:
    model = denoiser()
    with pytest.raises(ConfigurationError, match="made too early"):
        Guard(model, accelerator=Accelerator(cpu=True), folder=tmp_path)
    from lightning.fabric import Fabric

    with pytest.raises(ConfigurationError, match="made too early"):
        Guard(model, accelerator=Fabric(accelerator="cpu", devices=1), folder=tmp_path)


def test_a_guard_before_the_denoiser_is_wrapped(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = denoiser()
        guard = Guard(model, folder=tmp_path)
        with pytest.raises(ConfigurationError, match="put around the denoiser later"):
            step_of(torch.nn.parallel.DistributedDataParallel(model))
        guard.close()
    finally:
        torch.distributed.destroy_process_group()


def test_a_guard_after_load_state(tmp_path: Path) -> None:
    accelerated(tmp_path, steps=2, save_at=2, guarded=False)
    accelerator = Accelerator(cpu=True)
    model = denoiser()
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.load_state(str(tmp_path / "checkpoint"))
    with pytest.raises(ConfigurationError, match="The optimizer took steps before the guard was made"):
        Guard(model, accelerator=accelerator, folder=tmp_path)


def test_a_state_that_comes_late(tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path)
    prediction, data = step_of(model)
    guard.loss(prediction, data["noise"], keys=data["key"])
    with pytest.raises(ConfigurationError, match="after the first batch"):
        guard.load_state_dict(guard.state_dict())
    guard.close()


@pytest.mark.parametrize("forwards", [0, 1])
def test_a_guard_that_was_never_stepped(forwards: int, tmp_path: Path) -> None:
    model = denoiser()
    said = "saw no forward" if not forwards else "no loss was handed over"
    with pytest.raises(ProbeError, match=said), Guard(model, folder=tmp_path):
        for _ in range(forwards):
            step_of(model)
    # Nothing of it is left on the model.
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_losses_out_of_step_with_forwards(tmp_path: Path) -> None:
    model, other = denoiser(), denoiser()
    guard = Guard(model, folder=tmp_path)
    prediction, data = step_of(other)
    with pytest.raises(ProbeError, match=r"No forward of the denoiser with gradients came before guard"):
        guard.loss(prediction, data["noise"], keys=data["key"])
    step_of(model)
    with pytest.raises(ProbeError, match="does not depend on the output"):
        guard.loss(prediction, data["noise"], keys=data["key"])
    with pytest.raises(ProbeError, match="ran twice with gradients before the loss"):
        step_of(model)
    guard.close()
    guard = Guard(model, folder=tmp_path)
    prediction, data = step_of(model)
    with torch.no_grad():
        step_of(model)
    guard.loss(prediction, data["noise"], keys=data["key"])
    with pytest.raises(ProbeError, match="No forward of the denoiser came between the last complete loss"):
        guard.loss(prediction, data["noise"], keys=data["key"])
    guard.close()


def test_rows_and_keys_that_do_not_fit(tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path)
    prediction, data = step_of(model)
    with pytest.raises(DataError, match="5 rows and no keys"):
        guard.loss(prediction, data["noise"])
    with pytest.raises(DataError, match="5 rows and 4 keys"):
        guard.loss(prediction, data["noise"], keys=data["key"][1:])
    with pytest.raises(DataError, match="names no sample"):
        guard.loss(prediction, data["noise"], keys=7)
    with pytest.raises(ConfigurationError, match=r"gave .* for 5 samples"):
        guard.loss(prediction, data["noise"], keys=data["key"], criterion=F.mse_loss)
    with pytest.raises(DataError, match="has the shape"):
        guard.loss(prediction, data["noise"][:3], keys=data["key"])
    guard.loss(prediction[:3], data["noise"][:3], keys=data["key"][:3])
    with pytest.raises(DataError, match="5 rows, but 2 of"):
        guard.loss(prediction, data["noise"], keys=data["key"])
    guard.close()


def test_what_has_to_see_the_batch_first_is_refused(tmp_path: Path) -> None:
    class Changing(FixedWeights):
        def effects(self) -> Any:
            return SampleReplacement().effects()

    model = denoiser()
    guard = Guard(model, folder=tmp_path, mitigations=[Changing()])
    with pytest.raises(ConfigurationError, match="Changing changes batches"):
        step_of(model)
    guard.close()


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path, reference=True)
    with pytest.raises(ConfigurationError, match="sample_loss"):
        step_of(model)
    guard.close()
    with pytest.raises(ConfigurationError, match="AttentionRegularization compares with the base model's profile"):
        Guard(model, folder=tmp_path, mitigations=[AttentionRegularization()])
    with pytest.raises(ConfigurationError, match="no option 'refrence'"):
        Guard(model, folder=tmp_path, refrence=False)


@pytest.mark.slow
def test_compiled_too_early(tmp_path: Path) -> None:
    model = torch.compile(denoiser(), backend="eager")
    step_of(model)
    guard = Guard(model, folder=tmp_path)
    with pytest.raises(ProbeError, match="attach the probe before the first call of a compiled denoiser"):
        prediction, data = step_of(model)
        guard.loss(prediction, data["noise"], keys=data["key"])
    guard.close()
    torch._dynamo.reset()
    with Guard(torch.compile(denoiser(), backend="eager"), folder=tmp_path) as guard:
        prediction, data = step_of(guard.host.module.denoiser)
        guard.loss(prediction, data["noise"], keys=data["key"])
    torch._dynamo.reset()


def test_a_mistake_leaves_no_guard_behind(tmp_path: Path) -> None:
    model = denoiser()
    with pytest.raises(RuntimeError, match="mine"), Guard(model, folder=tmp_path):
        raise RuntimeError("mine")
    Guard(model, folder=tmp_path).close()
