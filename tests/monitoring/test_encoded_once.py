"""What the forwards of a batch share: the same profile under the same names, captions and images encoded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memtrain.data.module import TextImageDataModule
from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.encoded_once import EncodedOnce
from memtrain.monitoring.host import Host
from memtrain.monitoring.profiled_samples import measure_profile
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule


def measured(host: Host, folder: Path) -> dict[str, Tensor]:
    """Values of a profile by the contents of the samples."""
    probe = DenoiserProbe(host.module.denoiser)
    profile = ReferenceProfile(folder, [DenoisingLoss()], ["denoising_loss"], timesteps=(100,), draws=2)
    measure_profile(host, profile=profile, probe=probe, cached_only=False)
    contents = profile.parts.contents().combine_chunks()
    values, _ = profile.parts.read(contents)
    return dict(zip(contents.to_pylist(), torch.from_numpy(values), strict=True))


def test_a_profile_encodes_each_batch_once_and_comes_to_the_same_bits_under_the_same_names(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = TextToImageModule(str(pipeline_folder), ema_decay=None, lora=LoRA(rank=2, dropout=0.3))
    data = TextImageDataModule(str(write_folder(4)), resolution=16, batch_size=1, heldout_fraction=0.3)
    data.build(module.tokens)
    host, encoded = Host(module, data=data, folder=tmp_path), dict.fromkeys(("encode_text", "encode_images"), 0)

    def counted(name: str, encode: Callable[[Any], Any], fields: Any) -> Any:
        encoded[name] += 1
        return encode(fields)

    for name in encoded:
        monkeypatch.setattr(module.parts, name, partial(counted, name, getattr(module.parts, name)))
    found = measured(host, tmp_path / "once")
    batches = sum(len(data.unique_dataloader(part)) for part in data._built())
    assert encoded == {"encode_text": batches + 1, "encode_images": batches}  # once more to see whether it is trained
    encoded.update(dict.fromkeys(encoded, 0))
    monkeypatch.setattr(EncodedOnce, "__call__", lambda self, batch: batch)
    expected = measured(host, tmp_path / "each")
    assert set(encoded.values()) == {2 * batches}
    assert found.keys() == expected.keys()
    assert all(torch.equal(values, expected[name]) for name, values in found.items())


def test_what_is_there_is_left_and_what_is_trained_is_not_encoded_ahead() -> None:
    class Module:
        weight = torch.ones(3, requires_grad=True)

        def encode_tokens(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            return {"text_embeddings": batch["input_ids"][..., None] * self.weight}

    batch: dict[str, Any] = {"key": ["a", "b"], "input_ids": torch.ones(2, 4), "latents": torch.ones(2, 4, 1, 1)}
    module = Module()
    assert EncodedOnce(module)(batch).keys() == batch.keys()
    module.weight = torch.ones(3)
    once = EncodedOnce(module)
    assert once(batch)["text_embeddings"].shape == (2, 4, 3)
    cached = {**batch, "text_embeddings": torch.zeros(2, 4, 3)}
    assert torch.equal(once(cached)["text_embeddings"], cached["text_embeddings"])
    assert EncodedOnce(object())(batch).keys() == batch.keys()
