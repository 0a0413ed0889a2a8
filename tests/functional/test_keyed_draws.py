"""What is drawn for a sample depends on names alone."""

import torch

from memtrain.functional.keyed_draws import normal, seed_of, uniform


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
