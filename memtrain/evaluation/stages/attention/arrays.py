"""Files of the attention to text, in the layout of MemAttn's script.

Each seed has a folder `arrays_seed0`, with a file `0_pos.npz` for each prompt that holds `arr_0`, `arr_1`, ... There is
an array `(heads, T)` for each step and each cross-attention, in the order of the forward pass. It holds the attention
that each token receives in the conditional half, averaged over image tokens. The last array is the number of tokens of
the prompt with BOS and EOS. Their `read_results.py --mode merge_small` and `detect.py` read these files (Ren et al.,
ECCV 2024).
Differences: heads are already averaged, so there is one head (their scripts average over heads next). The noise comes
from memtrain's seeds; their scripts seed all of torch with the line number.
Size: 5 KB per prompt, step and seed for Stable Diffusion 1.x. Arrays of numbers only: numpy reads them without pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from memtrain.records import written_whole


def array_folder(folder: Path, seed: int) -> Path:
    """Return the folder of the arrays of a seed."""
    return folder / f"arrays_seed{seed}"


def array_writer(folder: Path, seeds: Sequence[int], lengths: Sequence[int]) -> Callable[[int, Tensor], None]:
    """Make a function that writes the arrays of a prompt, from its place and its readings `(K, S, sites, T)`.

    Args:
        folder: the folder for the folders of the seeds.
        seeds: the K seeds; for a prompt with its own first seed, only their distance to the first seed counts.
        lengths: the P numbers of tokens.
    """

    def write(place: int, readings: Tensor) -> None:
        for seed, steps in zip(seeds, readings, strict=True):
            arrays = [site[None].float().numpy() for step in steps for site in step]
            path = array_folder(folder, seed) / f"{place}_pos.npz"
            with written_whole(path) as unfinished, unfinished.open("wb") as file:
                np.savez(file, *arrays, np.int64(lengths[place]))

    return write
