"""The reference profile: what it holds, that it is cached by content, and that measuring continues."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from memtrain.errors import ConfigurationError, RecordError
from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.functional.diffusion import per_sample_mse
from memtrain.models.fingerprint import weights_fingerprint
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.base import Signal
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.value_outliers import ValueOutliers

SIGNALS: list[Signal] = [DenoisingLoss(), AttentionEntropy()]


class Host:
    """A denoiser with `sample_loss`, counting its forwards."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet, self.forwards = unet, 0

    def sample_loss(self, batch: dict[str, Any], timesteps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.forwards += 1
        noise = torch.randn(batch["latents"].shape, generator=generator)
        text = torch.nn.functional.one_hot(batch["input_ids"], 16).float()
        return per_sample_mse(self.unet(batch["latents"] + noise, timesteps, text).sample, noise)


@pytest.fixture
def host(pipeline: StableDiffusionPipeline) -> Host:
    return Host(pipeline.unet)


def batches(keys: str = "abcdef") -> Iterator[dict[str, Any]]:
    for start in range(0, len(keys), 2):
        chosen = list(keys[start : start + 2])
        latents = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(ord(key))) for key in chosen]
        ids = torch.tensor([[ord(key) % 16, 3, 4] for key in chosen])
        yield {"key": chosen, "latents": torch.stack(latents), "input_ids": ids}


def profile(folder: Path, host: Host, probe: DenoiserProbe, **options: Any) -> ReferenceProfile:
    columns = [name for signal in SIGNALS for name in signal.columns(list(probe.sites))]
    made = ReferenceProfile(folder, SIGNALS, columns, **{"timesteps": (700, 200), "draws": 2, **options})
    made.name_after(host.unet)
    return made


def test_values_are_the_signals_of_the_base_model_averaged_over_draws(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet, sites="*")
    made = profile(tmp_path, host, probe)
    assert made.measure(probe, host.sample_loss, batches()) == 6
    assert made.load() == 6
    first = next(batches())
    steps, total = torch.full((2,), 200), torch.zeros(2, 5)
    for draw in range(2):
        generator = torch.Generator().manual_seed(200 * 1009 + draw)
        with probe.measure(Observation(first["key"])) as seen:
            seen.sample_loss = host.sample_loss(first, steps, generator)
        total += torch.cat([signal(seen) for signal in SIGNALS], dim=1)
    torch.testing.assert_close(made.lookup(["a", "b"], [0, 449]), total / 2)
    assert made.lookup(["a"], [451]).ne(made.lookup(["a"], [449])).any(), "the nearest measured timestep counts"
    with pytest.raises(RecordError, match="'z'"):
        made.lookup(["z"], [0])


def test_interrupted_measuring_continues_and_nothing_is_measured_twice(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet, sites="*")

    def interrupted() -> Iterator[dict[str, Any]]:
        for index, batch in enumerate(batches()):
            if index == 2:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path, host, probe).measure(probe, host.sample_loss, interrupted())
    assert host.forwards == 2 * 4
    made = profile(tmp_path, host, probe)
    assert made.measure(probe, host.sample_loss, batches()) == 2
    assert host.forwards == 3 * 4
    assert profile(tmp_path, host, probe).measure(probe, host.sample_loss, batches()) == 0


def test_equal_samples_are_measured_once_whatever_they_are_called(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet)
    made = profile(tmp_path, host, probe)
    given = list(batches())
    copies = [{**batch, "key": [f"copy of {key}" for key in batch["key"]]} for batch in given]
    mixed = {name: torch.cat([a[:1], b[:1]]) for name, a, b in _fields(given[1], given[2])} | {"key": ["x", "y"]}
    assert made.measure(probe, host.sample_loss, [*given, mixed, *copies]) == 6
    assert host.forwards == 3 * 2 * 2
    assert made.load() == 14
    for other in ("copy of c", "x"):
        assert torch.equal(made.lookup(["c"], [200]), made.lookup([other], [200]))


def test_a_batch_that_holds_one_sample_twice_is_measured_once(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet)
    made = profile(tmp_path, host, probe)
    first = next(batches())
    twice = {name: torch.cat([value, value]) for name, value, _ in _fields(first, first)} | {
        "key": ["a", "b", "c", "d"]
    }
    assert made.measure(probe, host.sample_loss, [twice]) == 2
    assert made.load() == 4


def _fields(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    return [(name, value, other[name]) for name, value in one.items() if name != "key"]


def test_data_that_share_samples_keep_each_others_values(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet, sites="*")
    first, second = profile(tmp_path, host, probe), profile(tmp_path, host, probe)
    first.measure(probe, host.sample_loss, batches("abcd"))
    assert second.measure(probe, host.sample_loss, batches("axcbdy")) == 2, "x and y; the others are known"
    assert (second.load(), first.load()) == (6, 4)


def test_changed_content_is_measured_again_under_the_same_key(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet, sites="*")
    profile(tmp_path, host, probe).measure(probe, host.sample_loss, batches())

    def changed() -> Iterator[dict[str, Any]]:
        for batch in batches():
            batch["latents"] = (
                batch["latents"] + (torch.tensor([key == "c" for key in batch["key"]])[:, None, None, None])
            )
            yield batch

    made = profile(tmp_path, host, probe)
    assert made.measure(probe, host.sample_loss, changed()) == 1, "c alone"
    made.load()


def test_two_processes_measure_half_each(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet, sites="*")
    both = [profile(tmp_path, host, probe) for _ in range(2)]
    counts = [p.measure(probe, host.sample_loss, batches(), rank=r, world_size=2) for r, p in enumerate(both)]
    assert counts == [4, 2]
    alone = profile(tmp_path / "alone", host, probe)
    alone.measure(probe, host.sample_loss, batches())
    for p in (*both, alone):
        assert p.load() == 6
    assert torch.equal(both[1].lookup("abcdef", [700] * 6), alone.lookup("abcdef", [700] * 6))


def test_a_resumed_run_refuses_to_measure_a_trained_model(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet, sites="*")
    profile(tmp_path, host, probe).measure(probe, host.sample_loss, batches("abcd"))
    with pytest.raises(RecordError, match="lacks samples of this data"):
        profile(tmp_path, host, probe).measure(probe, host.sample_loss, batches(), cached_only=True)


def test_the_name_follows_weights_and_settings(tmp_path: Path, host: Host) -> None:
    probe = DenoiserProbe(host.unet, sites="*")
    names = {
        profile(tmp_path, host, probe, **options).fingerprint
        for options in ({}, {"draws": 1}, {"seed": 1}, {"timesteps": (200,)})
    }
    before = weights_fingerprint(host.unet)
    parameter = next(host.unet.parameters())
    with torch.no_grad():
        kept = parameter.clone()
        parameter.add_(1e-4)
        assert weights_fingerprint(host.unet) != before
        parameter.copy_(kept)
    assert weights_fingerprint(host.unet) == before
    assert len(names) == 4


def test_the_name_follows_what_the_module_has_beside_the_denoiser(tmp_path: Path, host: Host) -> None:
    made = profile(tmp_path, host, DenoiserProbe(host.unet, sites="*"))
    alone = made.fingerprint
    assert made.name_after(host.unet, SimpleNamespace()) == alone
    encoder = torch.nn.Linear(2, 2)
    other = copy.deepcopy(encoder)
    torch.nn.init.zeros_(other.weight)
    modules = [
        *({"text_encoder": part} for part in (encoder, other)),
        *({"scheduler": DDPMScheduler(prediction_type=kind)} for kind in ("epsilon", "v_prediction")),
        *({"noise_offset": offset} for offset in (0.1, 0.2)),
        {"text_encoder": encoder, "vae": other},
    ]
    names = [made.name_after(host.unet, SimpleNamespace(**module)) for module in modules]
    assert names == [made.name_after(host.unet, SimpleNamespace(**module)) for module in modules]
    assert len({alone, *names}) == 8


def test_an_empty_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="measures nothing"):
        ReferenceProfile(tmp_path, SIGNALS, ["x"], timesteps=())


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_the_nearest_timestep_is_the_same_on_the_device_and_on_the_host(tmp_path: Path, dtype: torch.dtype) -> None:
    """500 is 500 from 0 and 499 from 999, which bfloat16 rounds to 500; 450 is as far from 300 as from 600."""
    for measured, timestep, expected in (((0, 999), 500, 1), ((300, 600), 450, 0)):
        timesteps = torch.tensor([timestep], dtype=dtype)
        known = ReferenceProfile(tmp_path, SIGNALS, ["x"], timesteps=measured)
        assert known.buckets_on_device(timesteps).tolist() == [known.bucket(float(timesteps))] == [expected]


def test_statistics_of_other_captions_make_another_profile(tmp_path: Path, host: Host) -> None:
    def name(captions: torch.Tensor) -> str:
        signal = ValueOutliers()
        signal.fit([Observation((), neuron_activation={"up": captions})])
        return ReferenceProfile(tmp_path, [signal], ["value_outliers.up"]).name_after(host.unet)

    captions = torch.rand(5, 3)
    assert name(captions) == name(captions.clone())
    assert name(captions) != name(captions + 0.1)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_visit_one_and_two_are_looked_up(host: Host, tmp_path: Path, count: int) -> None:
    profile = ReferenceProfile(tmp_path, [DenoisingLoss()], ["denoising_loss"], timesteps=(100, 500), draws=1)
    probe = DenoiserProbe(host.unet).attach()
    profile.measure(probe, host.sample_loss, batches("ab"))
    probe.detach()
    profile.load()
    keys, timesteps = ["a", "b"][:count], [90.0, 510.0][:count]
    found = profile.lookup(keys, timesteps)
    assert found.shape == (count, 1)
    assert torch.equal(found, profile.lookup_on_device(keys, torch.tensor(timesteps)))


def test_a_profile_of_no_sample_is_refused(host: Host, tmp_path: Path) -> None:
    profile = ReferenceProfile(tmp_path, [DenoisingLoss()], ["denoising_loss"])
    assert profile.measure(DenoiserProbe(host.unet), host.sample_loss, iter(())) == 0
    with pytest.raises(RecordError, match="covers no sample"):
        profile.load()
