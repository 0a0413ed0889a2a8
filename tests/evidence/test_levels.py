"""Evidence by picture, sample and caption: the rate that holds for the three together, and who is flagged by what."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.levels import CAPTION, COMMON, PICTURE, SAMPLE
from memtrain.evidence.thresholds import SharedRate
from memtrain.families.table import Families


def families(
    *groups: tuple[str, int, int, int],
) -> tuple[Families, dict[str, list[str]]]:
    """Captions of `span` pictures of `members` files each, `count` of them, by the name of the group."""
    pictures, captions, keys = {}, {}, {}
    for name, members, span, count in groups:
        keys[name] = [f"{name} {c} {p} {m}" for c in range(count) for p in range(span) for m in range(members)]
        for key in keys[name]:
            _, caption, picture, _ = key.split()
            if members > 1:
                pictures[key] = f"{name} {caption} {picture} 0"
            if span > 1:
                captions[key] = f"{name} {caption} 0 0"
    return Families(pictures, captions), keys


def made(index: Families | None, *, pictures: int | None = None, rate: float = 0.05, **options: Any) -> Calibration:
    """A calibration of one value that is high when memorized."""
    calibration = Calibration(
        1, scored=slice(0, 1), memorized_when="high", buckets=1, false_positive_rate=rate, **options
    )
    return calibration.group_by(index, pictures=pictures)


def held_out(calibration: Calibration, generator: torch.Generator, *, count: int = 60, rounds: int = 10) -> None:
    """Visits of held-out samples that do not differ."""
    names = [f"held {index}" for index in range(count)]
    for _ in range(rounds):
        calibration.add_heldout(names, [0] * count, torch.randn(count, 1, generator=generator))


def visit(calibration: Calibration, keys: list[str], value: float, *, step: int = 0) -> None:
    """One visit of each."""
    calibration.add(keys, [0] * len(keys), torch.full((len(keys), 1), value), step=step)


def shares_flagged(*, within: float, between: float, seed: int, rate: float, heldout: bool = True) -> dict[str, float]:
    """Shares of ordinary samples that are flagged in a run of eight epochs; families are alike by `within`."""
    generator = torch.Generator().manual_seed(seed)
    index, groups = families(
        ("lone", 1, 1, 200), ("five", 5, 1, 60), ("many", 200, 1, 8), ("few", 1, 5, 40), ("wide", 1, 50, 12)
    )
    keys = [key for group in groups.values() for key in group]
    calibration = made(index, pictures=len({index.picture(key) for key in keys}), rate=rate, heldout=heldout)

    def drawn(names: list[str]) -> torch.Tensor:
        rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
        return torch.randn(len(rows), generator=generator)[[rows[name] for name in names]]

    caption, picture = drawn([index.caption(key) for key in keys]), drawn([index.picture(key) for key in keys])
    shared = math.sqrt(within) * caption + math.sqrt(1 - within) * picture
    own = between * (math.sqrt(within) * shared + math.sqrt(1 - within) * torch.randn(len(keys), generator=generator))
    held, theirs = [f"held {row}" for row in range(100)], between * torch.randn(100, generator=generator)
    order = torch.arange(len(keys))
    for step in range(8 * (len(keys) // 512 + 1)):
        epoch, part = divmod(step, len(keys) // 512 + 1)
        if heldout and part == 0:
            for _ in range(8 if epoch == 0 else 1):
                calibration.add_heldout(held, [0] * 100, (theirs + torch.randn(100, generator=generator))[:, None])
        if part == 0:
            order = torch.randperm(len(keys), generator=generator)
        batch = order[512 * part : 512 * (part + 1)]
        values = own[batch] + torch.randn(len(batch), generator=generator)
        calibration.add([keys[row] for row in batch], [0] * len(batch), values[:, None], step=step)
    return {name: float(calibration.ever_flagged(group).float().mean()) for name, group in groups.items()}


@pytest.mark.parametrize(("within", "between"), [(0.0, 0.2), (0.5, 0.2), (1.0, 0.2), (1.0, 0.0)])
def test_the_stated_rate_holds_for_sample_picture_and_caption_together(within: float, between: float) -> None:
    runs = [shares_flagged(within=within, between=between, seed=seed, rate=0.05) for seed in (4, 5)]
    # Captions of 50 pictures are few, so that one by chance is much.
    most = {"lone": 0.05, "five": 0.05, "many": 0.05, "few": 0.05, "wide": 0.1}
    assert all(sum(run[name] for run in runs) / len(runs) <= share for name, share in most.items()), runs


def test_a_family_that_is_memorized_is_flagged_at_its_first_visits_with_members_that_were_never_visited() -> None:
    index, groups = families(("lone", 1, 1, 40), ("copies", 20, 1, 2))
    calibration, generator = made(index, pictures=42), torch.Generator().manual_seed(0)
    held_out(calibration, generator)
    bad = groups["copies"][:20]
    for step, key in enumerate(bad[:12]):
        visit(calibration, [key], 4.0, step=step)
    assert calibration.first_flagged == dict.fromkeys(bad, calibration.first_flagged[bad[0]])
    assert calibration.first_flagged[bad[19]] < 10
    assert calibration.levels.flagged_by == dict.fromkeys(bad, PICTURE)
    assert calibration.levels.flagged_pictures == {bad[0]}
    assert calibration.share_flagged() == 1 / 42
    assert calibration.counted_visits([bad[0], bad[19], groups["copies"][20]]) == [12, 12, 0]
    assert calibration.ready([bad[19], groups["copies"][20]]).tolist() == [True, False]
    assert calibration.flagged(bad).all()
    assert (calibration.scores(bad) > calibration.threshold).all()
    means = calibration.means([bad[0], bad[19]])
    assert means[0].tolist() == [4.0]
    assert means[1].isnan().all(), "that file was never visited"


def test_a_caption_of_several_pictures_and_a_single_file_are_flagged_for_themselves() -> None:
    index, groups = families(("lone", 1, 1, 40), ("shared", 1, 4, 2), ("copies", 2, 1, 2))
    calibration, generator = made(index, pictures=50), torch.Generator().manual_seed(0)
    held_out(calibration, generator)
    shared, copies = groups["shared"][:4], groups["copies"][:2]
    for step in range(4):
        visit(calibration, shared, 5.0, step=step)
    # No picture of it has visits enough for a flag of its own.
    assert calibration.levels.flagged_by == dict.fromkeys(shared, CAPTION)
    assert calibration.judged(shared).tolist() == [False] * 4
    assert calibration.ready(shared).all()
    assert (calibration.scores(shared) > calibration.threshold).all()
    for step in range(40):
        visit(calibration, copies[:1], 1.6, step=step)
        visit(calibration, copies[1:] * 3, -1.6, step=step)
    assert calibration.levels.flagged_by.get(copies[0]) == SAMPLE
    assert copies[1] not in calibration.first_flagged
    assert calibration.levels.flagged_pictures == {*shared, copies[0]}


def test_a_caption_that_much_of_the_data_shares_condemns_nobody() -> None:
    index, groups = families(("lone", 1, 1, 40), ("generic", 1, 20, 1), ("pair", 1, 2, 1))
    calibration, generator = made(index, pictures=62), torch.Generator().manual_seed(0)
    held_out(calibration, generator)
    assert COMMON * 62 < 20
    generic, pair = groups["generic"], groups["pair"]
    assert calibration.levels.name(CAPTION, generic[3]) is None
    assert calibration.levels.name(CAPTION, pair[1]) == pair[0]
    for step in range(12):
        visit(calibration, generic[:1] * 2, 5.0, step=step)
    assert set(calibration.first_flagged) == {generic[0]}
    assert calibration.levels.common == {generic[0]}
    # Of few pictures, two may share one.
    assert made(index, pictures=4).levels.name(CAPTION, pair[1]) == pair[0]


def test_the_rate_is_shared_among_the_levels_that_a_sample_has() -> None:
    index, groups = families(("lone", 1, 1, 40), ("shared", 1, 2, 1), ("copies", 2, 1, 1))
    calibration = made(index, pictures=50)
    asked = [(PICTURE, groups["lone"][0]), (PICTURE, groups["shared"][1]), (PICTURE, groups["copies"][0])]
    asked += [(CAPTION, groups["shared"][0]), (SAMPLE, groups["copies"][1])]
    assert [calibration.levels.parts(level, name) for level, name in asked] == [1, 2, 3, 3, 3]
    # So few that no rate is an order statistic's.
    held_out(calibration, torch.Generator().manual_seed(0), count=15)
    at = [calibration.shared.at(calibration.threshold, parts=parts) for parts in (1, 2, 3)]
    assert at[0] == calibration.threshold < at[1] < at[2]
    assert calibration.shared.at(calibration.threshold, parts=3, looks=30.0) > at[2]
    assert SharedRate().at(math.inf, parts=3) == math.inf


def test_samples_that_stand_alone_are_judged_as_without_families() -> None:
    outcomes = []
    for index in (None, Families()):
        generator = torch.Generator().manual_seed(0)
        calibration = made(index, pictures=80, canaries=["k0"])
        held_out(calibration, generator)
        for step in range(20):
            keys = [f"k{row}" for row in torch.randint(80, (50,), generator=generator).tolist()]
            values = torch.randn(50, 1, generator=generator) + torch.tensor([[2.0 * (key < "k2")] for key in keys])
            calibration.add(keys, [0] * 50, values, step=step)
            held_out(calibration, generator, rounds=1)
        keys = [f"k{row}" for row in range(80)]
        found = (calibration.first_flagged, calibration.threshold, calibration.scores(keys).tolist())
        outcomes.append((*found, calibration.p_values(keys).tolist(), calibration.flagged(keys).tolist()))
    assert repr(outcomes[0]) == repr(outcomes[1])
    assert outcomes[0][0]


def test_held_out_samples_that_are_not_trained_on_are_never_flagged_with_their_caption() -> None:
    index, groups = families(("lone", 1, 1, 40), ("shared", 1, 4, 1))
    shared = groups["shared"]
    calibration = made(index).group_by(index, pictures=43, apart={shared[3]})
    held_out(calibration, torch.Generator().manual_seed(0))
    for step in range(6):
        visit(calibration, shared[:3], 6.0, step=step)
    assert set(calibration.first_flagged) == set(shared[:3])


def test_members_of_one_held_out_picture_are_one() -> None:
    index, groups = families(("held", 3, 1, 10))
    calibration = made(index)
    calibration.add_heldout(groups["held"], [0] * 30, torch.randn(30, 1, generator=torch.Generator().manual_seed(0)))
    assert calibration.heldout is not None
    assert list(calibration.heldout.row) == groups["held"][::3]


class Growing(Families):
    """An index that learns of a member after its family was flagged."""

    def learn(self, key: str, picture: str) -> None:
        self.pictures.update({picture: picture, key: picture})  # type: ignore[attr-defined]
        self.__dict__.pop("_by_picture", None)


def test_a_member_that_appears_later_is_found_flagged_by_its_family() -> None:
    index = Growing(pictures={})
    calibration = made(index)
    held_out(calibration, torch.Generator().manual_seed(0))
    for step in range(8):
        visit(calibration, ["first"], 6.0, step=step)
    assert calibration.levels.flagged_by == {"first": SAMPLE}
    index.learn("second", "first")
    assert calibration.ever_flagged(["second", "third"]).tolist() == [True, False]
    assert "second" not in calibration.first_flagged
    visit(calibration, ["second"], 0.0, step=9)
    assert calibration.first_flagged["second"] == calibration.first_flagged["first"]
    assert calibration.levels.flagged_by["second"] == PICTURE


def test_the_state_goes_on_with_the_levels_and_an_earlier_one_without() -> None:
    index, groups = families(("lone", 1, 1, 40), ("shared", 1, 4, 2), ("copies", 5, 1, 4))
    keys = [key for group in groups.values() for key in group]

    def go_on(calibration: Calibration, generator: torch.Generator, steps: range) -> None:
        for step in steps:
            chosen = [keys[row] for row in torch.randint(len(keys), (32,), generator=generator).tolist()]
            values = torch.randn(32, 1, generator=generator) + 2.0 * torch.tensor(
                [[key in groups["copies"][:5]] for key in chosen]
            )
            calibration.add(chosen, [0] * 32, values, step=step)

    whole = made(index, pictures=52)
    held_out(whole, torch.Generator().manual_seed(0))
    go_on(whole, torch.Generator().manual_seed(1), range(12))
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    resumed = made(index, pictures=52)
    resumed.load_state_dict(state)
    for calibration in (whole, resumed):
        go_on(calibration, torch.Generator().manual_seed(2), range(12, 24))
    assert repr(resumed.state_dict()) == repr(whole.state_dict())
    assert whole.first_flagged
    early = {name: part for name, part in state.items() if name not in ("levels", "shared")}
    resumed.load_state_dict(early)
    assert resumed.first_flagged == state["first_flagged"]
    assert resumed.levels.flagged_by == dict.fromkeys(state["first_flagged"], SAMPLE)
