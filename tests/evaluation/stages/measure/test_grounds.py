"""What keeps from clearing: twins, held-out copies, samples that are no pictures, copies elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memtrain.evaluation.measures.replication import Replication, replication
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.measure.grounds import (
    copies_elsewhere,
    data_reasons,
    elsewhere_reasons,
    heldout_copies,
    not_seen,
    sampling_reasons,
    typical_distance,
    unseen,
)
from memtrain.evaluation.stages.measure.samples import own_index, picture_numbers, under_one_caption
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.families.table import Families

COPIES, OTHERS, HELDOUT = 60, 60, 20


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def jittered(images: Tensor, *, seed: int) -> Tensor:
    """Nearly the same images."""
    return (images.int() + noise(*images.shape, seed=seed).int() // 64).clamp(max=255).to(torch.uint8)


PICTURE, PLAIN, HELD = noise(1, 3, 8, 8), noise(OTHERS, 3, 8, 8, seed=1), noise(HELDOUT, 3, 8, 8, seed=2)
TWINS = {f"copy-{number}": "copy-0" for number in range(COPIES)}


def run(families: Families | None, **changes: Any) -> RunSamples:
    """One picture under sixty names, sixty others, and twenty held out; the first three pictures are asked for."""
    training = torch.cat([jittered(PICTURE.expand(COPIES, -1, -1, -1), seed=3), PLAIN])
    keys = [*(f"copy-{number}" for number in range(COPIES)), *(f"other-{number}" for number in range(OTHERS))]
    prompts = [Prompt("copy-0", "a copy", "repeated"), *(Prompt(f"other-{n}", f"o{n}", "unique") for n in range(2))]
    prompts += [Prompt(f"held-{number}", f"h{number}", "heldout") for number in range(HELDOUT)]
    given: dict[str, Any] = {
        "prompts": prompts,
        "own_images": torch.cat([training[:1], PLAIN[:2], HELD]),
        "training_images": training,
        "training_keys": keys,
        "families": families,
    }
    return RunSamples(**{**given, **changes})


def measured(samples: RunSamples, generated: Tensor) -> tuple[Replication, Tensor, list[list[int]]]:
    own = own_index(samples.prompts, samples.training_keys, samples.own_images, samples.training_images)
    shared = under_one_caption(samples)
    found = replication(
        generated,
        samples.own_images,
        training=samples.training_images,
        own_index=own,
        family=picture_numbers(samples),
        shared=shared,
    )
    return found, own, shared


def blind(samples: RunSamples) -> Tensor:
    _, own, shared = measured(samples, samples.own_images[:, None])
    typical = typical_distance(samples.own_images)
    copies = jittered(samples.own_images, seed=4)
    return unseen(samples, copies, own_index=own, shared=shared, threshold=0.7, typical=typical)


def test_twins_that_no_family_explains_make_the_ratio_blind() -> None:
    """With the family, a copy of the picture is counted; without it, its twins are its neighbours."""
    alone, together = run(None), run(Families(TWINS))
    copy = torch.cat([jittered(PICTURE, seed=5), noise(2 + HELDOUT, 3, 8, 8, seed=6)])[:, None]
    assert float(measured(alone, copy)[0].best[0]) > 0.9
    assert float(measured(together, copy)[0].best[0]) < 0.1
    assert blind(alone)[:3].tolist() == [True, False, False]
    assert not blind(together).any()
    nothing = torch.zeros(len(alone.prompts), dtype=torch.bool)
    (reason,) = not_seen(alone, blind(alone), nothing)
    assert reason.reason == "copies_unseen" and "1 of 1 repeated" in reason.found
    assert not not_seen(together, blind(together), nothing)
    counted = nothing.clone()
    counted[0] = True
    assert not not_seen(alone, blind(alone), counted), "what was counted was seen"


def test_a_copy_under_another_caption_of_its_family_is_counted() -> None:
    """The second caption's own file is a mirrored version; the generation is the first file."""
    mirrored = PICTURE.flip(3)
    samples = run(
        Families({"a": "a", "b": "a"}),
        prompts=[Prompt("b", "another caption", "repeated")],
        own_images=mirrored,
        training_images=torch.cat([PICTURE, mirrored, PLAIN]),
        training_keys=["a", "b", *(f"other-{number}" for number in range(OTHERS))],
    )
    assert float(measured(samples, PICTURE[:, None])[0].best[0]) == 0
    alone = run(
        None,
        **{name: getattr(samples, name) for name in ("prompts", "own_images", "training_images")},
        training_keys=samples.training_keys,
    )
    assert float(measured(alone, PICTURE[:, None])[0].best[0]) > 0.9


def test_any_picture_under_a_shared_caption_is_its_own() -> None:
    """Also where every training image is under it: the nearest is compared with the others."""
    keys = [f"other-{number}" for number in range(OTHERS)]
    samples = run(
        Families({}, dict.fromkeys(keys, keys[0])),
        prompts=[Prompt(keys[0], "one caption", "shared_caption")],
        own_images=PLAIN[:1],
        training_images=PLAIN,
        training_keys=keys,
    )
    found, _, _ = measured(samples, torch.stack([PLAIN[7], noise(3, 8, 8, seed=9)])[None])
    assert found.looks is not None
    assert (found.looks.tolist(), found.neighbours) == ([OTHERS], 50)
    assert found.ratio[0, 0] == 0
    assert found.ratio[0, 1] > 0.8


def test_held_out_copies_do_not_calibrate() -> None:
    images = torch.cat([PLAIN[:1], jittered(PLAIN[1:2], seed=7), HELD])
    found = heldout_copies(images, PLAIN, typical=typical_distance(torch.cat([PLAIN, HELD])))
    assert found.tolist() == [True, True] + [False] * HELDOUT


@pytest.mark.parametrize(
    ("generated", "sampling", "expected"),
    [
        (torch.cat([noise(1, 3, 8, 8, seed=8)] * 23), Sampling(seeds=(0, 1, 2)), ["samples_alike"]),
        (noise(23, 3, 8, 8, seed=8), Sampling(seeds=(0, 1, 2)), []),
        (255 * (noise(23, 3, 8, 8, seed=8) // 128), Sampling(seeds=(0, 1, 2)), ["samples_far"]),
        (noise(23, 3, 8, 8, seed=8), Sampling(seeds=(0,), steps=2), ["few_seeds", "few_steps"]),
    ],
)
def test_samples_that_are_no_pictures_clear_nothing(generated: Tensor, sampling: Sampling, expected: list[str]) -> None:
    """All alike, ordinary, of black and white dots, and too few."""
    samples = run(Families(TWINS))
    found, own, _ = measured(samples, generated[:, None])
    reasons = sampling_reasons(samples, generated[:, None], found, own_index=own, sampling=sampling)
    assert [one.reason for one in reasons] == expected


def test_a_picture_that_another_caption_brings_back_is_named() -> None:
    """Unless it comes back for its own caption, too."""
    samples = run(Families(TWINS))
    generated = noise(23, 3, 8, 8, seed=8)
    generated[2] = PICTURE[0]
    found, _, _ = measured(samples, generated[:, None])
    nothing = torch.zeros(23, dtype=torch.bool)
    names = copies_elsewhere(samples, found, reproduced=nothing, threshold=0.7)
    assert names == ["copy-0"]
    assert "copy-0" in elsewhere_reasons(names)[0].found
    nothing[0] = True
    assert not elsewhere_reasons(copies_elsewhere(samples, found, reproduced=nothing, threshold=0.7))


def test_what_nobody_has_looked_at_is_not_known() -> None:
    assert [one.reason for one in data_reasons(run(None))] == ["families_unknown"]
    assert [one.reason for one in data_reasons(run(Families(), not_looked_at=3))] == ["families_incomplete"]
    assert not data_reasons(run(Families()))
