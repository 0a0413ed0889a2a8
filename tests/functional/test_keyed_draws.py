"""What is drawn for a sample depends on names alone."""

import hashlib

import torch

from memtrain.functional.keyed_draws import (
    hash_numbers,
    hash_order,
    mixed_seed,
    normal,
    seed_of,
    seed_of_text,
    uniform,
)


def test_seeds_tell_names_their_order_and_their_borders_apart() -> None:
    names = [(0, 1, "a"), (1, 0, "a"), (0, 11, "a"), (0, 1, "b"), (0, 1, "1a"), (0, "1", "a"), (0, 1)]
    seeds = [seed_of(*name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**62 for seed in seeds)
    # The same in every process and release: Python's own hash would not be.
    assert seed_of(0, 1, "a") == 0xE8B12F9CCCCEF4A


def test_a_row_depends_on_its_seed_alone() -> None:
    seeds = [seed_of(0, 7, key) for key in "abcd"]
    state = torch.get_rng_state()
    for draw in (lambda s: uniform(s, 5), lambda s: normal(s, (3, 4), device=torch.device("cpu"))):
        whole = draw(seeds)
        assert torch.equal(torch.cat([draw(seeds[:1]), draw(seeds[1:])]), whole)
        assert torch.equal(draw(seeds[::-1]), whole.flip(0))
        assert len(whole.flatten(1).unique(dim=0)) == 4
        assert draw([]).shape == (0, *whole.shape[1:])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_draws_have_their_distributions() -> None:
    seeds = [seed_of(0, number, "key") for number in range(4000)]
    numbers, noise = uniform(seeds, 2), normal(seeds, (2,), device=torch.device("cpu"))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    for values, mean, variance in ((numbers, 0.5, 1 / 12), (noise, 0.0, 1.0)):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.mean(0), torch.full((2,), mean), atol=0.06, rtol=0)
        torch.testing.assert_close(values.var(0), torch.full((2,), variance), atol=0.08, rtol=0)
        assert abs(float(torch.corrcoef(values.T)[0, 1])) < 0.06


def test_no_name_one_and_two_have_as_many_draws() -> None:
    for count in (0, 1, 2):
        assert uniform(range(count), 3).shape == (count, 3)
        assert normal(range(count), (2, 2), device=torch.device("cpu")).shape == (count, 2, 2)


def test_hashed_numbers_are_uniform_and_the_same_everywhere():
    numbers = hash_numbers("a", 4000)
    assert numbers[:50] == hash_numbers("a", 50)
    assert numbers[0] == int.from_bytes(hashlib.shake_256(b"a").digest(4), "big") / 2**32
    assert 0 <= min(numbers) < 0.01 < 0.99 < max(numbers) < 1
    assert abs(sum(numbers) / 4000 - 0.5) < 0.02


def test_the_order_of_keys_is_that_of_hashes_of_salt_and_key() -> None:
    keys = [f"sample {number}" for number in range(50)]
    expected = sorted(keys, key=lambda key: hashlib.sha256(b"heldout\x00" + key.encode()).digest())
    assert sorted(keys, key=lambda key: hash_order(key, "heldout")) == expected
    assert sorted(keys, key=lambda key: hash_order(key, "other")) != expected


def test_a_text_and_counters_seed_what_they_always_did() -> None:
    """From the definitions: 60 bits of the hash, and a draw of each generator added to the next counter."""
    assert seed_of_text("1 0 ['a']") == int.from_bytes(hashlib.sha256(b"1 0 ['a']").digest()[:8], "big") >> 4
    assert mixed_seed(5) == 5
    first = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(5))) + 7
    second = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(first % 2**62))) + 2
    assert mixed_seed(5, 7, 2) == second % 2**62
    assert len({mixed_seed(seed, *counters) for seed in (0, 1) for counters in ((0, 1), (1, 0), (0,), (1,))}) == 8
