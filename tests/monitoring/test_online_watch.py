"""Copies of held-out pictures: known on sight while the picture is remembered, by equal values also afterwards."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler

from memtrain.families.figures import looks
from memtrain.families.online import OnlineFamilies, Seen
from memtrain.monitoring.online_watch import OnlineWatch

SOME = torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def watch(index: OnlineFamilies) -> OnlineWatch:
    """With every picture held out whose number is even."""
    host: Any = SimpleNamespace(noise_scheduler=DDPMScheduler(), gather=lambda own: own, rank=0)
    return OnlineWatch(host, index, held_out=lambda name: int(name[1:]) % 2 == 0)


def show(index: OnlineFamilies, numbers: range) -> None:
    packed = looks(SOME)
    assert packed is not None
    index.add([Seen(f"s{number}", packed[number]) for number in numbers])


def test_copies_of_held_out_pictures_are_known_after_these_were_forgotten() -> None:
    index = OnlineFamilies(pictures=16)
    seeing, calibration = watch(index), SimpleNamespace()
    packed, brighter = looks(SOME), looks(1.5 * SOME)
    assert packed is not None and brighter is not None
    assert seeing.twins(packed) is None
    for start in range(0, 60, 10):
        show(index, range(start, start + 10))
        seeing.exchange(calibration)
        found = seeing.twins(packed)
        assert found is not None
        assert found.tolist() == [number % 2 == 0 and number < start + 10 for number in range(60)]
    assert index.memory.forgotten >= 44
    found = seeing.twins(brighter)
    assert found is not None
    remembered = {int(name[1:]) for name in index.memory.owners}
    assert found.tolist() == [number % 2 == 0 and number in remembered for number in range(60)]
    again = watch(OnlineFamilies(pictures=16))
    again.load_state_dict(seeing.state_dict())
    for shown in (packed, brighter):
        ours, theirs = again.twins(shown), seeing.twins(shown)
        assert ours is not None and theirs is not None
        assert torch.equal(ours, theirs)
