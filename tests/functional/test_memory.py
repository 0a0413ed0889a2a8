"""Images by the pixels that fit."""

from memtrain.functional.memory import images_at_once


def test_large_images_come_a_few_at_a_time_and_never_none() -> None:
    sizes = ((64, 64), (128, 128), (256, 128), (512, 512), (4096, 4096))
    assert [images_at_once(*size) for size in sizes] == [64, 64, 32, 4, 1]


def test_on_a_device_half_of_what_is_free_is_used() -> None:
    """32 images of 512 px take 25.8 GB in fp32."""
    assert images_at_once(512, 512, free=2 * 27_000_000_000) == 32
    assert images_at_once(512, 512, free=2 * 27_000_000_000, bytes_per_number=2) == 64
    assert images_at_once(1024, 1024, free=1_000_000_000) == 1
