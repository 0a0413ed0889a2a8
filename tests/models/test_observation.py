"""What an observation says of groups of text tokens."""

from __future__ import annotations

import math

import pytest
import torch

from memtrain.errors import ProbeError
from memtrain.models.observation import Observation


def test_entropy_of_a_group_of_tokens_is_its_part_of_the_sum() -> None:
    attention = torch.tensor([[0.5, 0.125, 0.125, 0.25, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    seen = Observation(["a", "b"], torch.tensor([4, 3]), token_attention={"site": attention})

    def part(*probabilities: float) -> float:
        return -sum(p * math.log(p) for p in probabilities)

    expected = {
        "all": [part(0.5, 0.125, 0.125, 0.25), part(*[0.2] * 5)],
        "prompt": [part(0.125, 0.125), part(0.2)],
        "summary": [part(0.25), part(*[0.2] * 3)],
    }
    for tokens, values in expected.items():
        torch.testing.assert_close(seen.entropy(tokens), torch.tensor(values)[:, None])  # type: ignore[arg-type]


def test_a_prompt_mask_places_the_words_where_a_length_cannot() -> None:
    attention = torch.full((1, 4), 0.25)
    seen = Observation(["a"], torch.tensor([3]), token_attention={"site": attention}, clip_layout=False)
    for tokens in ("prompt", "summary"):
        with pytest.raises(ProbeError, match="prompt_mask"):
            seen.entropy(tokens)  # type: ignore[arg-type]
    seen.prompt_mask = torch.tensor([[True, True, True, False]])
    share = 0.25 * math.log(4)
    assert seen.entropy("prompt").item() == pytest.approx(3 * share)
    assert seen.entropy("summary").item() == pytest.approx(share)
