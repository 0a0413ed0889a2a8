"""IET-AGC's rule, against its definition computed sample by sample."""

import pytest
import torch

from memtrain.callbacks.loss_skipping import STEPS, LossSkipping, running_mean
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation


def visit(mitigation: LossSkipping, losses: list[float], timesteps: list[int]) -> list[float]:
    count = len(losses)
    none = torch.zeros(count, dtype=torch.bool)
    observation = Observation(
        [str(i) for i in range(count)], timesteps=torch.tensor(timesteps), sample_loss=torch.tensor(losses)
    )
    return mitigation.weights(observation, Flags(none, none, torch.zeros(count))).tolist()


def test_the_rule_of_the_paper_over_many_batches() -> None:
    mitigation, mean = LossSkipping(ratio=1.25, decay=0.8), [0.0] * 1000
    generator = torch.Generator().manual_seed(0)
    skipped = 0
    for _ in range(60):
        losses = torch.rand(6, generator=generator).tolist()
        steps = torch.randint(4, (6,), generator=generator).tolist()
        kept = [loss * 1.25 >= mean[step] for loss, step in zip(losses, steps, strict=True)]
        for loss, step in zip(losses, steps, strict=True):
            mean[step] = 0.8 * mean[step] + 0.2 * loss
        expected = [float(keep) for keep in kept]
        torch.testing.assert_close(torch.tensor(visit(mitigation, losses, steps)), torch.tensor(expected))
        skipped += 6 - sum(kept)
    assert 60 < skipped < 240
    torch.testing.assert_close(mitigation.mean[:4], torch.tensor(mean[:4]))


def test_nothing_is_skipped_at_first_and_everything_can_be() -> None:
    mitigation = LossSkipping()
    assert visit(mitigation, [0.001, 0.002], [5, 6]) == [1.0, 1.0]
    mitigation.mean.fill_(10.0)
    assert visit(mitigation, [0.001, 0.002], [5, 6]) == [0.0, 0.0]


def test_the_running_means_are_kept_in_checkpoints() -> None:
    mitigation = LossSkipping()
    visit(mitigation, [1.0], [3])
    again = LossSkipping()
    again.load_state_dict(mitigation.state_dict())
    assert torch.equal(again.mean, mitigation.mean)
    assert again.mean[3] > 0


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_means_are_those_of_the_loop_over_samples(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(STEPS, generator=generator)
    steps = torch.randint(5, (40,), generator=generator)
    values = torch.rand(40, generator=generator)
    values[7], values[20], values[30] = torch.nan, torch.inf, torch.nan
    steps[7] = 900
    expected = mean.clone()
    for step, value in zip(steps, values, strict=True):
        if value.isfinite():
            expected[step] = decay * expected[step] + (1 - decay) * value
    torch.testing.assert_close(running_mean(mean, steps, values, decay=decay), expected)


def test_published_names_the_constants_of_a_paper() -> None:
    assert (LossSkipping().ratio, LossSkipping(published="liu2024").decay) == (1.25, 0.8)
    assert (LossSkipping(ratio=2).ratio, LossSkipping(2, decay=0.5).decay) == (2, 0.5)
    assert LossSkipping(2, 0.9, published=None).ratio == 2
    for arguments in ({"published": None}, {"published": "wen"}, {"ratio": 0.5}, {"decay": 1.0}):
        with pytest.raises(ConfigurationError):
            LossSkipping(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_batches_of_no_sample_one_and_two(count: int) -> None:
    mitigation = LossSkipping()
    for _ in range(3):
        assert visit(mitigation, [1.0, 2.0][:count], [5, 6][:count]) == [1.0] * count
    assert mitigation.mean.isfinite().all()
    assert int((mitigation.mean > 0).sum()) == count
