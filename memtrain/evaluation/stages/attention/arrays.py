"""The attention to text as files, in the layout of MemAttn's script.

Per seed a folder `arrays_seed0`, in it per prompt `0_pos.npz` with `arr_0`, `arr_1`, ...: for each step, for each
cross-attention in the order of the forward pass, what each token receives, `(heads, T)`, of the conditional half and
averaged over image tokens; last the number of tokens of the prompt with BOS and EOS. Their `read_results.py --mode
merge_small` and `detect.py` read these files (Ren et al., ECCV 2024).
Differences: heads are averaged already, so there is one (their scripts average over them next). Noise is that of our
seeds, not of theirs, which seed all of torch with the line number.
Size: 5 KB per prompt, step and seed for Stable Diffusion 1.x. Arrays of numbers only: numpy reads them without pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from memtrain.records import written_whole


def array_folder(folder: Path, seed: int) -> Path:
    """Where the arrays of a seed are."""
    return folder / f"arrays_seed{seed}"


def array_writer(folder: Path, seeds: Sequence[int], lengths: Sequence[int]) -> Callable[[int, Tensor], None]:
    """What writes the arrays of a prompt, given its place and its readings `(K, S, sites, T)`.

    Args:
        folder: in which the folders of the seeds are made.
        seeds: K seeds; for a prompt with a first seed of its own their distance to the first counts.
        lengths: P numbers of tokens.
    """

    def write(place: int, readings: Tensor) -> None:
        for seed, steps in zip(seeds, readings, strict=True):
            arrays = [site[None].float().numpy() for step in steps for site in step]
            path = array_folder(folder, seed) / f"{place}_pos.npz"
            with written_whole(path) as unfinished, unfinished.open("wb") as file:
                np.savez(file, *arrays, np.int64(lengths[place]))

    return write
