"""Which samples are held out by weight."""

from __future__ import annotations

from memtrain.families.table import Families
from memtrain.monitoring.heldout_keys import HeldoutKeys


def test_the_share_is_kept_and_depends_on_the_key_alone() -> None:
    keys = [f"image_{index}.png" for index in range(4000)]
    tenth, half = HeldoutKeys(0.1), HeldoutKeys(0.5)
    chosen = {key for key in keys if key in tenth}
    assert 330 < len(chosen) < 470
    # A larger share holds out the same ones and more.
    assert chosen <= {key for key in keys if key in half}
    assert tenth.mask(keys) == [key in chosen for key in keys]
    # On every machine and in every version.
    assert [key for key in keys[:30] if key in tenth] == [key for key in keys[:30] if key in HeldoutKeys(0.1)]


def test_none_is_held_out_without_a_share_and_none_that_shall_not_be() -> None:
    keys = [str(index) for index in range(200)]
    assert HeldoutKeys(0.0).mask(keys) == []
    assert not any(key in HeldoutKeys(0.5, never=keys) for key in keys)


def test_the_files_of_a_picture_are_held_out_together() -> None:
    pictures = {f"{name}{copy}": f"{name}0" for name in "abcdefghijklmnopqrst" for copy in range(5)}
    chosen = HeldoutKeys(0.5, families=Families(pictures))
    apart = {key for key in pictures if key in chosen}
    assert 0 < len(apart) < len(pictures)
    assert all((key in apart) == (head in apart) for key, head in pictures.items())
    assert apart != {key for key in pictures if key in HeldoutKeys(0.5)}
    assert [chosen.picture(key) for key in ("c3", "other")] == ["c0", "other"]
