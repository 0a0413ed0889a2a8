"""The cache on disk: equal to no cache, shared by processes, made again where something changed, and refused."""

import json
from threading import Barrier, Thread

import pytest
import torch
from PIL import Image

from memtrain.data.caption_choice import Captions
from memtrain.data.dataset import CaptionedImages, Visit
from memtrain.data.disk_cache import Processes, cache_latents, cache_text, refuse_frozen
from memtrain.data.framing import Augment, Framing
from memtrain.data.one_shape import loader
from memtrain.data.source import open_source
from memtrain.data.tensor_shards import ShardWriter, TensorShards
from memtrain.errors import ConfigurationError


class Encoder:
    """Counts what it encodes."""

    def __init__(self):
        self.images = self.captions = 0
        self.hook = lambda: None

    def encode_images(self, pixels):
        self.hook()
        self.images += len(pixels)
        return pixels[:, :1, ::2, ::2].double() * 3

    def encode_text(self, fields):
        self.captions += len(fields["input_ids"])
        ids = fields["input_ids"]
        pooled = ids.float().sum(1, keepdim=True)
        return {"text_embeddings": ids[..., None] * torch.ones(4), "pooled_embeddings": pooled}


def tokens(captions):
    return {"input_ids": torch.tensor([[len(text), sum(map(ord, text))] for text in captions])}


def folder_of(tmp_path, count=6, *, text="a thing"):
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        # Wide, high and square ones.
        size = [(24, 12), (12, 24), (12, 12)][number % 3]
        Image.effect_noise(size, 40 + number).convert("RGB").save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"{text} {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def dataset(folder, *, shapes=((8, 16), (16, 8), (8, 8)), augment=None, **options):
    source = open_source(str(folder))
    framing = Framing(shapes, augment or Augment(), sized=True)
    return CaptionedImages(source, range(len(source)), resolution=8, tokens=tokens, framing=framing, **options)


def cached(folder, cache, encoder, **options):
    data = dataset(folder, **options)
    cache_latents([data], cache / "latents", encoder.encode_images)
    empty = cache_text([data], cache / "text", encoder.encode_text, empty=tokens([""]))
    return data, empty


def test_items_equal_those_without_a_cache(tmp_path):
    folder, encoder = folder_of(tmp_path), Encoder()
    plain = dataset(folder)
    data, empty = cached(folder, tmp_path / "cache", encoder)
    assert (encoder.images, encoder.captions) == (6, 7)
    for one, other in zip(data.unique(), plain, strict=True):
        expected = encoder.encode_images(other["pixel_values"][None])[0].float()
        assert torch.equal(one["latents"], expected)
        assert expected.shape == (1, *(side // 2 for side in other["target_size"].tolist()))
        text = encoder.encode_text({"input_ids": other["input_ids"][None]})
        assert torch.equal(one["text_embeddings"], text["text_embeddings"][0])
        assert torch.equal(one["pooled_embeddings"], text["pooled_embeddings"][0])
        assert one.keys() - {"latents", "text_embeddings", "pooled_embeddings"} == other.keys() - {"pixel_values"}
    for name, values in encoder.encode_text(tokens([""])).items():
        assert torch.equal(empty[name], values)


def test_loader_processes_read_it_too(tmp_path):
    data, _ = cached(folder_of(tmp_path), tmp_path / "cache", Encoder())
    data.unique()[0]
    batches = list(loader(data.unique(), batch_size=2, num_workers=1))
    assert sorted(key for batch in batches for key in batch["key"]) == [f"{number}.png" for number in range(6)]
    assert all(batch["latents"].shape[0] == 2 for batch in batches)


def test_only_what_changed_is_computed(tmp_path):
    folder, cache = folder_of(tmp_path), tmp_path / "cache"
    cached(folder, cache, Encoder())

    def computed(**options):
        encoder = Encoder()
        data, _ = cached(folder, cache, encoder, **options)
        for row in range(len(data)):
            expected = encoder.encode_images(data.pixel_values(row)[None])[0].float()
            assert torch.equal(data[row]["latents"], expected)
        return encoder.images - len(data), encoder.captions

    assert computed() == (0, 0)
    Image.new("RGB", (12, 12), "red").save(folder / "2.png")
    assert computed() == (1, 0)
    assert computed(shapes=((8, 8),)) == (4, 0), "squares are cached already"
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a thing", "another thing"))
    assert computed() == (0, 6)
    (folder / "0.png").rename(folder / "x.png")
    metadata.write_text(metadata.read_text().replace("0.png", "x.png"))
    assert computed() == (0, 0), "a name is no content"


@pytest.mark.parametrize("crop", [True, False])
def test_variants_are_cached_and_visited(tmp_path, crop):
    folder, encoder = folder_of(tmp_path), Encoder()
    augment = Augment(random_flip=True, random_crop=crop, variants=3)
    data, _ = cached(folder, tmp_path / "cache", encoder, augment=augment)
    assert encoder.images == (18 if crop else 12), "without crops the third view is the first again"
    for row in range(6):
        seen = set()
        for epoch in range(40):
            item = data[Visit(row, epoch)]
            variant = data.framing.variant_of(item["key"], (epoch, 0))
            frame = data.view(row, variant)
            expected = encoder.encode_images(data.pixel_values(row, frame)[None])[0].float()
            assert torch.equal(item["latents"], expected)
            assert item["crop_top_left"].tolist() == list(frame.top_left(data.source.look(row).size))
            seen.add(variant)
        assert seen == {0, 1, 2}
        assert torch.equal(data[row]["latents"], encoder.encode_images(data.pixel_values(row)[None])[0].float())


def test_processes_share_the_work(tmp_path):
    folder, barrier, encoders = folder_of(tmp_path), Barrier(2), [Encoder(), Encoder()]
    box, found = {}, {}

    def broadcast(value):
        if value is not None:
            box["value"] = value
        barrier.wait()
        value = box["value"]
        barrier.wait()
        return value

    def run(rank):
        data = dataset(folder)
        processes = Processes(rank, 2, barrier.wait, broadcast)
        cache_latents([data], tmp_path / "latents", encoders[rank].encode_images, processes=processes)
        found[rank] = [item["latents"] for item in data]

    threads = [Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [encoder.images for encoder in encoders] == [3, 3]
    assert all(torch.equal(one, other) for one, other in zip(*found.values(), strict=True))


def test_a_killed_run_goes_on_and_a_damaged_shard_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("memtrain.data.disk_cache.ShardWriter", lambda folder: ShardWriter(folder, 1))
    folder, cache, encoder = folder_of(tmp_path), tmp_path / "cache", Encoder()

    def stop():
        if encoder.images >= 4:
            raise KeyboardInterrupt

    encoder.hook = stop
    with pytest.raises(KeyboardInterrupt):
        cached(folder, cache, encoder)
    encoder = Encoder()
    cached(folder, cache, encoder)
    assert encoder.images == 2
    shard = sorted((cache / "latents").glob("*.safetensors"))[3]
    shard.write_bytes(b"nothing")
    encoder = Encoder()
    data, _ = cached(folder, cache, encoder)
    assert encoder.images == 1
    assert len([item["latents"] for item in data]) == 6


def test_a_cache_holds_only_the_places_of_what_is_asked_for_in_memory(tmp_path):
    folder = folder_of(tmp_path)
    cached(folder, tmp_path / "cache", Encoder())
    shards = TensorShards(tmp_path / "cache" / "latents")
    shards.look()
    kept = list(shards._where)[:2]
    shards.forget_others(kept)
    assert list(shards._where) == kept


def test_what_would_be_frozen_is_refused(tmp_path):
    folder = folder_of(tmp_path, 2)
    with pytest.raises(ConfigurationError, match=r"freeze the random crops[\s\S]*augment\.variants"):
        refuse_frozen(dataset(folder, augment=Augment(random_flip=True)), latents=True)
    refuse_frozen(dataset(folder, augment=Augment(random_flip=True, variants=2)), latents=True, text=True)
    refuse_frozen(dataset(folder, augment=Augment(random_flip=True)), text=True)
    with pytest.raises(ConfigurationError, match=r"order of shuffled tags[\s\S]*cache\.text"):
        refuse_frozen(dataset(folder, captions=Captions(shuffle_tags=True)), text=True)


def test_every_caption_that_is_drawn_is_cached(tmp_path):
    folder = folder_of(tmp_path, 2)
    lines = [{"file_name": f"{number}.png", "texts": ["one", "two", "three"]} for number in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    encoder = Encoder()
    data, _ = cached(folder, tmp_path / "cache", encoder, captions=Captions(choose="random"))
    assert encoder.captions == 4
    seen = set()
    for epoch in range(30):
        item = data[Visit(0, epoch)]
        expected = encoder.encode_text({"input_ids": tokens([item["caption"]])["input_ids"]})
        assert torch.equal(item["text_embeddings"], expected["text_embeddings"][0])
        assert torch.equal(item["input_ids"], tokens([item["caption"]])["input_ids"][0])
        seen.add(item["caption"])
    assert seen == {"one", "two", "three"}
    assert data[0]["caption"] == data.unique()[0]["caption"] == "one"
