"""Token attention and entropy against closed forms and the definition in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.functional import attention
from memtrain.functional.attention import (
    entropy,
    partial_entropy,
    prompt_tokens,
    summary_tokens,
    text_mass,
    token_attention,
    token_map,
)


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


def test_masked_tokens_get_nothing_and_a_finite_gradient() -> None:
    query, key = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 7, 4)
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, 4:] = False
    reading = token_attention(query, key, valid=valid)
    assert reading[1, 4:].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(reading[1:, :4], token_attention(query[1:], key[1:, :, :4]))
    entropy(reading).sum().backward()
    assert query.grad is not None
    assert bool(query.grad.isfinite().all())


def test_mass_on_text_is_the_text_columns_of_the_joint_attention() -> None:
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 12, 4)
    joint = torch.softmax(query.double() @ key.double().transpose(-1, -2) / 2, dim=-1)
    for text in (slice(0, 7), slice(5, None)):
        expected = joint[..., text].sum(-1).mean(dim=(1, 2))
        torch.testing.assert_close(text_mass(query, key, text).double(), expected, atol=1e-6, rtol=0)


def test_partial_entropies_of_a_partition_add_up() -> None:
    reading = token_attention(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 9, 4))
    lengths = torch.tensor([5, 9])
    words, summary = prompt_tokens(lengths, 9), summary_tokens(lengths, 9)
    assert words.sum(1).tolist() == [3, 7]
    assert summary.sum(1).tolist() == [5, 1]
    first = torch.arange(9) == 0
    parts = partial_entropy(reading, words) + partial_entropy(reading, summary) + partial_entropy(reading, first)
    torch.testing.assert_close(parts, entropy(reading))


def test_the_gradient_of_the_entropy_is_its_derivative() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.25], requires_grad=True)
    entropy(probabilities).backward()
    torch.testing.assert_close(probabilities.grad, -(probabilities.detach().log() + 1))


def test_token_map_is_a_column_of_the_softmax(monkeypatch):
    query, key = torch.randn(2, 3, 10, 4), torch.randn(2, 3, 5, 4)
    token = torch.tensor([1, 4])
    valid = torch.tensor([[True] * 5, [True, False, True, False, True]])
    logits = (query.double() @ key.double().transpose(-1, -2) / 2).masked_fill(~valid[:, None, None], -torch.inf)
    maps = logits.softmax(-1).mean(dim=1)
    expected = torch.stack([maps[0, :, 1], maps[1, :, 4]]).float()
    torch.testing.assert_close(token_map(query, key, token, valid=valid), expected)
    monkeypatch.setattr("memtrain.functional.attention.MAXIMUM_ELEMENTS", 90)
    torch.testing.assert_close(token_map(query, key, token, valid=valid), expected)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_sample_one_and_two_have_as_many_distributions(count: int) -> None:
    query, key = torch.randn(count, 2, 6, 4), torch.randn(count, 2, 5, 4)
    found = token_attention(query, key)
    assert found.shape == (count, 5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(count))
    assert token_map(query, key, torch.zeros(count, dtype=torch.long)).shape == (count, 6)
    assert text_mass(query, key, slice(0, 2)).shape == entropy(found).shape == (count,)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(0, 10_000), st.floats(0, 30))
def test_entropy_lies_between_0_and_log_t_and_knows_no_order(tokens: int, seed: int, sharpness: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = (sharpness * torch.randn(3, tokens, generator=generator, dtype=torch.float64)).softmax(-1)
    found, order = entropy(p), torch.randperm(tokens, generator=generator)
    assert (found >= -1e-6).all() and (found <= math.log(tokens) + 1e-5).all()
    torch.testing.assert_close(entropy(p[:, order]), found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy(torch.cat([p, torch.zeros(3, 4)], dim=1)), found, rtol=1e-5, atol=1e-5)
    halves = torch.arange(tokens) < tokens // 2
    parts = partial_entropy(p, halves) + partial_entropy(p, ~halves)
    torch.testing.assert_close(parts, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 1e-3), (torch.float16, 2e-4), (torch.float32, 2e-6)])
@pytest.mark.parametrize("sharpness", [1, 6])
def test_entropy_of_half_precision_queries_and_keys_is_that_in_double(
    dtype: torch.dtype, error: float, sharpness: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    query = sharpness * torch.randn(4, 4, 64, 16, generator=generator, dtype=torch.float64)
    key = torch.randn(4, 4, 77, 16, generator=generator, dtype=torch.float64)
    p = torch.softmax(query @ key.transpose(-1, -2) * 16**-0.5, -1).mean((1, 2))
    exact = -(p * p.log()).sum(-1)
    found = entropy(token_attention(query.to(dtype), key.to(dtype))).double()
    torch.testing.assert_close(found, exact, rtol=0, atol=error)
