"""Token attention and entropy against closed forms and the definition in double precision."""

import math

import pytest
import torch

from memtrain.functional import attention
from memtrain.functional.attention import entropy, token_attention


def test_equal_keys_give_uniform_attention_and_entropy_of_log_t() -> None:
    query, key = torch.randn(2, 3, 5, 4), torch.ones(2, 3, 7, 4)
    reading = token_attention(query, key)
    torch.testing.assert_close(reading, torch.full((2, 7), 1 / 7))
    torch.testing.assert_close(entropy(reading), torch.full((2,), math.log(7)))


def test_one_token_takes_everything_and_entropy_is_zero() -> None:
    query, key = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
    key[:, :, 2] = 1000.0
    reading = token_attention(query, key)
    torch.testing.assert_close(reading, torch.eye(5)[2:3])
    assert entropy(reading).item() == 0.0


def test_average_over_pixels_and_heads_comes_before_the_entropy() -> None:
    query, key = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 3, 7, 4, dtype=torch.float64)
    probabilities = torch.softmax(query @ key.transpose(-1, -2) / 2, dim=-1)
    average = probabilities.mean(dim=(1, 2))
    expected = -(average * average.log()).sum(-1)
    measured = entropy(token_attention(query.float(), key.float()))
    torch.testing.assert_close(measured, expected.float(), atol=1e-6, rtol=0)
    mean_of_entropies = -(probabilities * probabilities.log()).sum(-1).mean(dim=(1, 2))
    assert (measured - mean_of_entropies).abs().min() > 1e-3


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 3, 11, 4), torch.randn(2, 3, 7, 4)
    whole = token_attention(query, key)
    monkeypatch.setattr(attention, "MAXIMUM_ELEMENTS", 2 * 3 * 7 * 4)
    torch.testing.assert_close(token_attention(query, key), whole)


def test_half_precision_inputs_are_computed_in_fp32_under_autocast() -> None:
    query, key = torch.randn(1, 2, 6, 4).bfloat16(), torch.randn(1, 2, 5, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        reading = token_attention(query, key)
    assert reading.dtype == torch.float32
    torch.testing.assert_close(reading, token_attention(query.float(), key.float()), atol=1e-7, rtol=0)
