"""The embedded shards are the ones that their documentation describes."""

import hashlib

import pytest

from memtrain.data.source import open_source

from .conftest import ROOT

ASSETS = ROOT / "assets"
COUNTS = {"emoji-train.tar": 2094, "emoji-heldout.tar": 214, "clipart-pd.tar": 1223}


def test_checksums():
    lines = (ASSETS / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    assert listed.keys() == COUNTS.keys()
    for name, digest in listed.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("name", COUNTS)
def test_shard_holds_what_its_description_says(name):
    source = open_source(str(ASSETS / name))
    assert len(source) == COUNTS[name]
    for index in range(0, len(source), 97):
        image = source.load_image(index)
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_emoji_shards_share_no_sample():
    train, heldout = (open_source(str(ASSETS / f"emoji-{part}.tar")).samples for part in ("train", "heldout"))
    assert not {sample.key for sample in train} & {sample.key for sample in heldout}
    assert not {sample.caption for sample in train} & {sample.caption for sample in heldout}


def test_every_licence_that_the_notice_names_is_there():
    notice = (ASSETS / "NOTICE").read_text()
    texts = sorted(path.name for path in ASSETS.glob("LICENSE-*.txt"))
    assert len(texts) == 3
    for name in texts:
        assert name in notice
