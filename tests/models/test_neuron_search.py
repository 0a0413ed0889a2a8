"""The neurons that stand out: closed forms, the same on one process and on two, and after a resume."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.moments import Moments
from memtrain.models.neuron_search import NeuronSearch, unusual_neurons

KEYS = [f"k{index}" for index in range(20)]


def activations(keys: Sequence[str]) -> Tensor:
    """Six neurons around 10; the third is unusual for k0, the fifth for k1."""
    rows = []
    for key in keys:
        row = 10 + torch.randn(6, generator=torch.Generator().manual_seed(int(key[1:])))
        row[2] += 50.0 * (key == "k0")
        row[4] -= 50.0 * (key == "k1")
        rows.append(row)
    return torch.stack(rows)


def see(
    search: NeuronSearch, keys: Sequence[str], flagged: Collection[str] = (), *, number: int, epoch: int = 0
) -> int:
    """A batch; returns how many of its activations were wanted."""
    wanted = search.wanted(keys, [key in flagged for key in keys], epoch=epoch)
    search.add(wanted, activations(keys), number=number, epoch=epoch)
    return len(wanted)


def synchronize(*ranks: NeuronSearch) -> list[bool]:
    """Every process in a thread of its own; `gather` waits for all."""
    barrier, values = threading.Barrier(len(ranks), timeout=30), [None] * len(ranks)

    def gather(rank: int) -> Callable[[Any], list[Any]]:
        def exchange(value: Any) -> list[Any]:
            values[rank] = value
            barrier.wait()
            everyone = list(values)
            barrier.wait()
            return everyone

        return exchange

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: ranks[rank].synchronize(gather(rank)), range(len(ranks))))


def new(rank: int = 0, count: int = 2) -> NeuronSearch:
    return NeuronSearch(6, count=count, rank=rank)


def test_the_neurons_furthest_from_other_captions_in_their_standard_deviations_are_found() -> None:
    others = Moments.of(torch.tensor([[1.0, 10.0, 3.0], [3.0, 30.0, 3.0]]))
    # Means 2, 20, 3 and standard deviations √2, 10√2, 0: z is 3 / √2, 25 / (10√2), and 0 where nothing differs.
    activation = torch.tensor([5.0, 45.0, 9.0])
    assert unusual_neurons(activation, others, 1) == [0]
    assert unusual_neurons(activation, others, 3) == [0, 1]


def test_flagged_samples_get_their_neurons_and_stay_out_of_the_reference() -> None:
    search = new(count=1)
    see(search, KEYS, {"k0", "k1"}, number=0)
    assert synchronize(search) == [True]
    assert search.found == {"k0": [2], "k1": [4]}
    assert search._moments.count == 18
    torch.testing.assert_close(search._moments.mean, activations(KEYS[2:]).double().mean(0))
    assert search.wanted(["k0"], [True], epoch=5) == [], "found for good"
    assert synchronize(search) == [False]


def test_each_caption_counts_once_an_epoch() -> None:
    search = new()
    assert see(search, [*KEYS, "k3", "k3"], number=0) == 22
    see(search, ["k3"], number=1)
    synchronize(search)
    assert search._moments.count == 20
    torch.testing.assert_close(search._moments.mean, activations(KEYS).double().mean(0))
    assert see(search, KEYS, number=2) == 0
    assert see(search, KEYS[:4], number=3, epoch=1) == 4
    synchronize(search)
    assert search._moments.count == 24


def test_too_few_captions_find_nothing_until_there_are_more() -> None:
    search = new(count=1)
    see(search, KEYS[:10], {"k0"}, number=0)
    assert synchronize(search) == [False]
    assert search.found == {}
    assert see(search, KEYS, {"k0"}, number=1) == 11
    assert synchronize(search) == [True]
    assert search.found == {"k0": [2]}


def test_two_processes_find_what_one_finds() -> None:
    single, ranks = new(count=6), (new(0, count=6), new(1, count=6))
    # A key on both processes at once, one that is flagged on both, and batches of unequal interest.
    batches = [
        ["k0", "k5", "k0", "k5"],
        ["k1", "k6", "k6", "k7"],
        ["k8", "k9", "k1", "k5"],
        ["k0", *KEYS[8:20], "k0", "k2"],
    ]
    for number, keys in enumerate(batches):
        flagged, half = {"k0", "k1"}, len(keys) // 2
        see(single, keys, flagged, number=number)
        see(ranks[0], keys[:half], flagged, number=number)
        see(ranks[1], keys[half:], flagged, number=number)
        if number % 2:
            synchronize(single)
            assert len(set(synchronize(*ranks))) == 1
    assert single.found["k0"][0] == 2
    for rank in ranks:
        assert rank.found == single.found
        assert rank._moments.count == single._moments.count == 16
        torch.testing.assert_close(rank._moments.mean, single._moments.mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(rank._moments.square, single._moments.square, atol=1e-12, rtol=0)
        assert rank._counted == single._counted


def test_a_resumed_search_goes_on_as_if_it_had_not_stopped() -> None:
    through = new()
    see(through, KEYS[:12], {"k0"}, number=0)
    synchronize(through)
    see(through, KEYS[8:16], number=1)
    file = io.BytesIO()
    torch.save(through.state_dict(), file)
    file.seek(0)
    resumed = new()
    resumed.load_state_dict(torch.load(file))
    for search in (through, resumed):
        see(search, [*KEYS[16:], "k1", "k0"], {"k0", "k1"}, number=2)
        assert synchronize(search) == [True]
    assert resumed.found == through.found != {}
    assert torch.equal(resumed._moments.mean, through._moments.mean)
    assert torch.equal(resumed._moments.square, through._moments.square)


def test_no_sample_one_and_two_are_searched_once_there_are_others_to_compare_with() -> None:
    for count in (0, 1, 2):
        search = NeuronSearch(3, count=2, rank=0)
        activation = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        flagged = [row < count for row in range(20)]
        keys = [f"k{row}" for row in range(20)]
        alone = search.wanted(keys[:count], flagged[:count], epoch=0)
        search.add(alone, activation[:count], number=0, epoch=0)
        assert not search.synchronize(lambda value: [value]), "nothing to compare with"
        search.add(search.wanted(keys, flagged, epoch=0), activation, number=1, epoch=0)
        assert search.synchronize(lambda value: [value]) == bool(count)
        assert sorted(search.found) == keys[:count]
        assert all(len(neurons) == 2 for neurons in search.found.values())
