"""Images by the pixels that fit."""

from memtrain.functional.memory import images_at_once


def test_large_images_come_a_few_at_a_time_and_never_none() -> None:
    sizes = ((64, 64), (128, 128), (256, 128), (512, 512), (4096, 4096))
    assert [images_at_once(*size) for size in sizes] == [64, 64, 32, 4, 1]
