import torch

from memtrain.data.dataset import CaptionedImages
from memtrain.data.source import open_source

from ..conftest import encoded_image


def tokens(captions):
    return {"input_ids": torch.tensor([[len(text), 7] for text in captions])}


def test_samples_of_one_content_have_one_name_and_others_another(write_shard):
    files = {"a.png": encoded_image(1), "b.png": encoded_image(1), "c.png": encoded_image(2), "d.png": encoded_image(1)}
    captions = {"a.txt": b"one", "b.txt": b"two", "c.txt": b"one", "d.txt": b"three"}
    source = open_source(str(write_shard(files | captions)))

    def dataset(**options):
        return CaptionedImages(source, range(4), resolution=options.pop("resolution", 8), **options)

    assert dataset().contents is None
    for index in range(4):
        source.look(index)
    a, b, c, d = dataset(tokens=tokens).contents
    assert a == b and len({a, c, d}) == 3
    assert len(set(dataset().contents)) == 4
    assert not set(dataset(tokens=tokens, resolution=16).contents) & {a, c, d}
    assert dataset(tokens=tokens).unique().contents == [a, b, c, d]
    masked = dataset(tokens=tokens)
    masked.use(masks=lambda index, frame: torch.ones(1, 1, 1))
    assert masked.contents is None
