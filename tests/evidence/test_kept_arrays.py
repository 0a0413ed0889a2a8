"""What evidence is kept as: the same again, and small."""

from __future__ import annotations

import io

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.kept_arrays import packed_counts, packed_names, unpacked_counts, unpacked_names


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(codec=None), max_size=8), max_size=6))
def test_any_names_come_back(names: list[str]) -> None:
    assert unpacked_names(packed_names(names)) == names


def test_counts_come_back() -> None:
    for counts in (torch.zeros(0, 3), torch.tensor([[0, 255, 256], [70_000, 2**31 - 1, 1]])):
        assert torch.equal(unpacked_counts(packed_counts(counts.int())), counts.int())


def test_evidence_takes_at_most_32_bytes_a_sample_in_a_checkpoint() -> None:
    count = 20_000
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(9, scored=slice(0, 1), memorized_when="low", buckets=1, minimum_visits=1)
    calibration.add_heldout(["held"] * 9, [0] * 9, torch.randn(9, 9, generator=generator))
    keys = [f"train/{row:08d}" for row in torch.randperm(count, generator=generator).tolist()]
    calibration.add(keys, [0] * count, torch.randn(count, 9, generator=generator), step=0)
    state, buffer = calibration.state_dict(), io.BytesIO()
    torch.save({name: state[name] for name in ("samples", "peak", "frequent", "early")}, buffer)
    assert buffer.tell() <= 32 * count
    assert (calibration.bulk.peak > -torch.inf).all(), "else nothing is shown"
    buffer.seek(0)
    again = Calibration(9, scored=slice(0, 1), memorized_when="low", buckets=1, minimum_visits=1)
    again.load_state_dict({**state, **torch.load(buffer, weights_only=True)})
    assert again.samples.names == calibration.samples.names
    for name in calibration.samples.arrays:
        assert torch.equal(again.samples.arrays[name], calibration.samples.arrays[name]), name
