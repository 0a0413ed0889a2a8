"""The index that grows: who belongs to whom, what is forgotten, and what a saved state keeps."""

from __future__ import annotations

import io
import time

import pytest
import torch
from torch import Tensor

from memtrain.families.figures import caption_name, looks
from memtrain.families.online import LATE, OnlineFamilies, Seen
from memtrain.families.online_captions import UNREAD
from memtrain.families.remembered import HIGHEST, UNCALIBRATED, RememberedLooks
from memtrain.families.table import EXACT, NEAR
from tests.families.test_figures import pictures


def seen(key: str, picture: Tensor | None = None, caption: str | None = None) -> Seen:
    packed = None if picture is None else looks(picture[None])
    return Seen(key, None if packed is None else packed[0], None if caption is None else caption_name(caption))


def distinct(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def test_a_picture_that_comes_again_under_another_key_is_of_the_family_of_the_first() -> None:
    index, some = OnlineFamilies(), pictures(3, 3, 32, 32)
    index.add([seen("a", some[0]), seen("b", some[1]), seen("again", some[0])])
    index.add([seen("mirrored", some[1].flip(-1)), seen("c", some[2])])
    assert [index.picture(key) for key in ("a", "again", "b", "mirrored", "c", "unknown")] == [*"aabbc", "unknown"]
    assert index.picture_members("a") == ("a", "again")
    table = index.families(["a", "b", "again", "mirrored", "c"])
    assert table.reason == {"again": EXACT, "mirrored": NEAR}
    assert table.pictures == {"a": "a", "again": "a", "b": "b", "mirrored": "b"}


def test_a_caption_names_a_family_if_several_pictures_have_it() -> None:
    index, some = OnlineFamilies(), pictures(3, 3, 32, 32)
    index.add([seen("a", some[0], "a fox"), seen("copy", some[0], "A fox"), seen("b", some[1], "an ox")])
    assert index.caption("copy") == "copy", "it is one picture"
    index.add([seen("c", some[2], "a fox "), seen("empty", some[2], ""), seen("nothing", None, "")])
    assert {index.caption(key) for key in ("a", "copy", "c")} == {"a"}
    assert set(index.caption_members("a")) == {"a", "copy", "c"}
    assert [index.caption(key) for key in ("b", "empty", "nothing")] == ["b", "empty", "nothing"]


def test_the_first_caption_of_a_sample_is_its_own_and_a_dropped_one_is_none() -> None:
    index = OnlineFamilies()
    index.add([seen("a", None, ""), seen("b", None, "two words")])
    index.add([seen("a", None, "one"), seen("c", None, "one")])
    index.add([seen("a", None, "two words")])
    assert index.caption_members("a") == ("a", "c")
    assert index.caption("b") == "b"


def test_an_empty_caption_that_cannot_be_read_is_told_by_how_often_it_comes() -> None:
    index = OnlineFamilies()
    for number in range(300):
        index.add([Seen(f"s{number}", None, f"{UNREAD}{'same' if number % 10 == 0 else number}")])
    assert index.caption("s290") == "s290"
    assert not index.captions.with_caption(f"{UNREAD}same")


def test_a_sample_is_compared_at_its_first_visits_only() -> None:
    index, some = OnlineFamilies(), pictures(2, 3, 32, 32)
    index.add([seen("a", some[0])])
    for _ in range(LATE):
        index.add([seen("b", some[1], "text")])
    assert index.settled("b")
    index.add([seen("b", some[0])])
    assert index.picture("b") == "b"


def test_a_sample_that_stood_alone_joins_later_and_its_family_says_so() -> None:
    index, some = OnlineFamilies(), pictures(2, 3, 32, 32)
    index.add([seen("a", some[0])])
    index.add([seen("b", some[1])])
    index.add([seen("b", some[0])])
    assert index.picture("b") == "a"
    assert index.renamed == [("b", "a")]
    assert "b" not in index.memory


def test_families_that_were_one_all_along_are_joined_when_the_threshold_is_known() -> None:
    index, some = OnlineFamilies(), distinct(400)
    generator = torch.Generator().manual_seed(1)
    changed = [some[0] + 0.25 * torch.randn(4, 8, 8, generator=generator) for _ in range(2)]
    index.add([seen("a", changed[0]), seen("a2", changed[0])])
    index.add([seen("b", changed[1]), seen("b2", changed[1])])
    assert index.picture("b2") == "b", "too different for what is assumed first"
    for start in range(1, 400, 8):
        index.add([seen(f"s{number}", some[number]) for number in range(start, min(start + 8, 400))])
    assert {index.picture(key) for key in ("a", "a2", "b", "b2")} == {"a"}
    assert index.renamed == [("b", "a")]


def test_looks_of_one_key_tell_how_many_copies_would_be_found() -> None:
    index, some = OnlineFamilies(), pictures(60, 3, 32, 32)
    assert index.recognised is None
    for shift in (0, 12):
        index.add([seen(f"s{number}", picture.roll(shift, -1)) for number, picture in enumerate(some)])
    assert index.recognised is not None
    assert index.recognised < 0.2
    steady = OnlineFamilies()
    for _ in range(2):
        steady.add([seen(f"s{number}", picture) for number, picture in enumerate(some)])
    assert steady.recognised == 1


def test_few_different_pictures_are_merged() -> None:
    """Noise at nine places: 1 % is asked for, of 2,000 pictures."""
    coarse = torch.randn(2000, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    index, some = OnlineFamilies(rate=0.01), torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")
    for start in range(0, 2000, 50):
        index.add([seen(f"s{number}", some[number]) for number in range(start, start + 50)])
    merged = sum(index.picture(f"s{number}") != f"s{number}" for number in range(2000))
    assert merged <= 20
    assert 0.9 <= index.memory.threshold() <= HIGHEST
    assert index.memory.threshold(3) < index.memory.threshold(), "among few a chance likeness is rarer"


def test_the_threshold_is_as_strict_as_it_can_be_before_enough_is_known() -> None:
    memory = RememberedLooks(100, rate=0.01)
    assert memory.threshold() == UNCALIBRATED
    assert not memory.calibrate()


@pytest.mark.slow
def test_a_hundred_thousand_keys_stay_within_the_bound() -> None:
    index, generator = OnlineFamilies(pictures=1000), torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for start in range(0, 100_000, 500):
        batch = looks(torch.randn(500, 1, 4, 4, generator=generator))
        assert batch is not None
        index.add([Seen(f"s{start + row}", batch[row], f"c{start + row}") for row in range(500)])
        index.add([seen(f"again{start}", torch.eye(4)[None])])
    assert len(index.memory) <= 1000
    assert index.memory.forgotten > 98_000
    assert len(index.memory.figures) <= 1000
    saved = io.BytesIO()
    torch.save(index.state_dict(), saved)
    assert len(index.memory.hashes) <= 64_000
    assert saved.tell() < 2_500_000
    assert index.picture("again99500") == "again0", "what comes again is not forgotten"
    assert time.perf_counter() - began < 120


def test_what_came_once_is_forgotten_first_and_of_it_the_oldest() -> None:
    memory = RememberedLooks(8, rate=0.01)
    figure = torch.ones(93, dtype=torch.int8)
    for number in range(8):
        memory.add(f"s{number}", number, figure, now=number)
        memory.met(f"s{number}", now=number)
    memory.met("s0", now=9)
    memory.add("new", 8, figure, now=10)
    assert "s0" in memory
    assert "s1" not in memory
    assert len(memory) == 8


def test_of_a_forgotten_picture_equal_copies_are_known_and_others_begin_a_new_family() -> None:
    index, some = OnlineFamilies(pictures=8), distinct(40)
    index.add([seen("a", some[0]), seen("a2", some[0])])
    for number in range(1, 30):
        index.add([seen(f"s{number}", some[number])])
        index.add([seen(f"t{number}", some[number])])
    assert "a" not in index.memory
    index.add([seen("a3", some[0] + 1e-3 * some[1])])
    assert index.picture("a3") == "a3"
    assert index.picture("a2") == "a", "of copies it stays known which picture they are"
    index.add([seen("a4", some[0])])
    assert index.picture("a4") == "a" in index.memory, "it came again, and is looked at again"
    index.add([seen("a5", some[0] + 1e-3 * some[2])])
    assert index.picture("a5") in ("a", "a3")
    assert set(index.keys()) >= {"a2", "a3", "a4", "a5"}


@pytest.mark.parametrize("cut", [1, 5])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(cut: int) -> None:
    some = pictures(40, 3, 16, 16)
    order = [number % 25 for number in range(120)]
    batches = [
        [seen(f"k{start + row}", some[order[start + row]], f"caption {order[start + row] % 20}") for row in range(6)]
        for start in range(0, 120, 6)
    ]
    whole = OnlineFamilies()
    for batch in batches:
        whole.add(batch)
    first, second = OnlineFamilies(), OnlineFamilies()
    for batch in batches[:cut]:
        first.add(batch)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    for batch in batches[cut:]:
        second.add(batch)
    keys = [f"k{number}" for number in range(120)]
    assert second.families(keys) == whole.families(keys)
    assert len(set(map(second.picture, keys))) == 25
