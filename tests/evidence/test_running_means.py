"""Evidence over visits: one scale for few and for many, values that are missing, no sample, one and two."""

import math

import pytest
import torch

from memtrain.evidence.running_means import Evidence


def test_scaled_evidence_has_unit_variance_for_few_and_many_visits() -> None:
    generator = torch.Generator().manual_seed(0)
    evidence = Evidence(1, window=12)
    rows = evidence.rows([str(index) for index in range(3000)])
    own = 0.6 * torch.randn(3000, 1, generator=generator, dtype=torch.float64)
    for visit in range(40):
        chosen = rows if visit < 3 else rows[::2]
        value = own[chosen] + 0.8 * torch.randn(len(chosen), 1, generator=generator, dtype=torch.float64)
        evidence.add(chosen, value, value)
    assert evidence.share_between_samples().item() == pytest.approx(0.36, abs=0.04)
    scaled = evidence.scaled(torch.tensor([0.36], dtype=torch.float64))[:, 0]
    assert scaled[1::2].std().item() == pytest.approx(1, abs=0.05)
    assert scaled[::2].std().item() == pytest.approx(1, abs=0.05)


def test_visits_without_a_value_are_no_evidence_of_that_value() -> None:
    evidence, dense = Evidence(2, window=4), Evidence(1, window=4)
    (row,), (alone,) = evidence.rows(["a"]), dense.rows(["a"])
    for index in range(9):
        value = torch.tensor([float(index), math.nan if index % 3 else 2.0 * index], dtype=torch.float64)
        evidence.add([row], value[None], value[None])
        if index % 3 == 0:
            dense.add([alone], value[None, 1:], value[None, 1:])
    assert evidence.visits[row].tolist() == [9, 3]
    assert evidence.total[row].tolist() == [36, 18]
    assert evidence.mean[row, 1] == dense.mean[alone, 0]
    assert evidence.dilution[row, 1] == dense.dilution[alone, 0]


def test_visits_of_a_batch_are_taken_one_after_the_other() -> None:
    together, apart = Evidence(2, window=3), Evidence(2, window=3)
    keys = list("abacaab")
    values = torch.randn(7, 2, dtype=torch.float64)
    together.add(together.rows(keys), values, 2 * values)
    for row, value in zip(apart.rows(keys), values, strict=True):
        apart.add([row], value[None], 2 * value[None])
    for name in ("visits", "mean", "dilution", "total"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_evidence_of_few_samples_is_finite_and_a_share_of_their_variance_takes_two(count: int) -> None:
    evidence = Evidence(2, window=4)
    rows = evidence.rows([f"k{index}" for index in range(count)])
    for _ in range(3):
        evidence.add(rows, torch.ones(count, 2), 3 * torch.ones(count, 2))
    share = evidence.share_between_samples()
    assert share.tolist() == ([0.95, 0.95] if count == 2 else [0.0, 0.0])
    for chosen in (None, rows, []):
        found = evidence.scaled(share, chosen)
        assert found.shape == (count if chosen is None else len(chosen), 2)
        assert found.isfinite().all()
