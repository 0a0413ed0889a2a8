"""A batch that does not fit is halved, once for each pipeline, and the results are those of the whole batch."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.evaluation.sampling import generate as module
from memtrain.evaluation.sampling.at_once import _FOUND, in_parts
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling


@pytest.fixture(autouse=True)
def no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second with all that the tests have imported."""
    monkeypatch.setattr("memtrain.evaluation.sampling.at_once.gc.collect", lambda: 0)


class Model:
    """Fits three images of ten pixels."""

    def __init__(self) -> None:
        self.tried: list[int] = []

    def work(self, rows: range) -> int:
        self.tried.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("full")
        return sum(rows)


def test_rows_are_done_once_and_what_was_found_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    with caplog.at_level(logging.WARNING):
        done = in_parts(model, range(5, 15), model.work, pixels=10)
        again = in_parts(model, range(15, 20), model.work, pixels=10)
        small = in_parts(model, range(20, 23), model.work, pixels=5)
    assert [row for part, _ in done for row in part] == list(range(5, 15))
    assert sum(value for _, value in done) == sum(range(5, 15))
    assert model.tried == [10, 5, 3, 3, 3, 1, 3, 2, 3]
    assert [len(part) for part, _ in again] == [3, 2]
    assert [len(part) for part, _ in small] == [3]  # smaller images: as many pixels
    assert len(caplog.records) == 2


def test_a_cpu_that_is_full_is_known_by_its_words_and_other_errors_pass() -> None:
    def work(rows: range) -> int:
        if len(rows) > 2:
            raise RuntimeError(full)
        return len(rows)

    full = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to ..."
    assert [count for _, count in in_parts(Model(), range(5), work, pixels=1)] == [2, 2, 1]
    full = "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="mat1"):
        in_parts(Model(), range(5), work, pixels=1)


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def work(rows: range) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        in_parts(Model(), range(4), work, pixels=1)


def test_sampling_goes_on_with_smaller_batches(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(seeds=(3, 7), steps=2, batch_size=6, progress=False)
    expected = generate(pipeline, ["a", "b", "c"], sampling=sampling).images
    whole, sizes = module._batch, []

    def full(*args: object, **kwargs: object) -> object:
        sizes.append(len(args[1]))  # type: ignore[arg-type]
        if len(args[1]) > 4:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("full")
        return whole(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_batch", full)
    try:
        found = generate(pipeline, ["a", "b", "c"], sampling=sampling).images
    finally:
        _FOUND.pop(pipeline, None)
    assert sizes == [6, 3, 3]
    assert found.shape == expected.shape
    # Rounding of another batch size may move a pixel by a grey level.
    assert (found.float() - expected.float()).abs().max() <= 1
