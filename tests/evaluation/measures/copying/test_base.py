import pytest
import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, compare


class Brightness(CopyMeasure):
    """A measure whose values can be worked out by hand: the negative difference of mean brightness."""

    name = "brightness"

    def describe(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2, 3))[:, None]

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        return -(first - second.T).abs()


def flat(*levels: int) -> Tensor:
    """Images of one grey level each, `(n, 3, 8, 8)`."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def test_generations_are_compared_with_their_own_picture_all_others_and_each_other():
    generated = flat(10, 30, 98, 50).view(2, 2, 3, 8, 8)
    found = compare(Brightness(), generated, flat(12, 60), training=flat(100, 12, 31), mine=[[1], []])
    torch.testing.assert_close(found.own, torch.tensor([[-2.0, -18.0], [-38.0, -10.0]]))
    torch.testing.assert_close(found.nearest, torch.tensor([[-2.0, -1.0], [-2.0, -19.0]]))
    assert found.nearest_index.tolist() == [[1, 2], [0, 2]]
    torch.testing.assert_close(found.other, torch.tensor([[-21.0, -1.0], [-2.0, -19.0]]))
    torch.testing.assert_close(found.between, torch.tensor([-20.0, -48.0]))
    torch.testing.assert_close(found.best, torch.tensor([-2.0, -10.0]))


def test_the_files_of_a_picture_all_count_as_its_own():
    found = compare(Brightness(), flat(40).view(1, 1, 3, 8, 8), flat(0), training=flat(0, 39, 80), mine=[[0, 1]])
    assert found.own.item() == -1
    assert found.other.item() == -40
    assert found.between.isnan().all()


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_blocks_and_features_at_hand_change_nothing(monkeypatch, at_once):
    monkeypatch.setattr("memtrain.evaluation.measures.copying.base.AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    generated = torch.randint(256, (3, 2, 3, 8, 8), generator=generator, dtype=torch.uint8)
    own, training = generated[:, 0], torch.randint(256, (5, 3, 8, 8), generator=generator, dtype=torch.uint8)
    mine = [[0, 4], [], [2]]
    found = compare(Brightness(), generated, own, training=training, mine=mine)
    again = compare(
        Brightness(), generated, own, training=training, mine=mine, features=Brightness().describe(training)
    )
    every = Brightness().similarity(Brightness().describe(generated.flatten(0, 1)), Brightness().describe(training))
    torch.testing.assert_close(found.nearest, every.amax(dim=1).view(3, 2))
    for one, other in zip(vars(found).values(), vars(again).values(), strict=True):
        torch.testing.assert_close(one, other)


class OnCandidates(Brightness):
    """The same, but compared with the nearest alone; others have no similarity that means anything."""

    candidates = 2

    def __init__(self) -> None:
        self.compared = 0

    def quick(self, first: Tensor, second: Tensor) -> Tensor:
        return super().similarity(first, second) / 10

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        self.compared += len(first) * len(second)
        return super().similarity(first, second)


@pytest.mark.parametrize("at_once", [3, 64])
@pytest.mark.parametrize("at_hand", [False, True])
def test_slow_measures_compare_candidates_and_find_what_all_pairs_would(monkeypatch, at_once, at_hand):
    monkeypatch.setattr("memtrain.evaluation.measures.copying.base.AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(1)
    generated = torch.randint(256, (3, 2, 3, 8, 8), generator=generator, dtype=torch.uint8)
    training = torch.randint(256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    own, mine = generated[:, 0], [[0, 39], [], [2]]
    training[2] = generated[2, 1]  # nearest to this one, and no other picture
    slow = OnCandidates()
    features = slow.describe(training) if at_hand else None
    found = compare(slow, generated, own, training=training, mine=mine, features=features)
    assert slow.compared <= 3 * (2 * (2 * 3 + 2) + 2 + 4)
    every = compare(Brightness(), generated, own, training=training, mine=mine)
    for one, other in zip(vars(found).values(), vars(every).values(), strict=True):
        torch.testing.assert_close(one, other)
