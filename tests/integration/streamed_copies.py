"""Streamed data in which pictures come again under keys of their own; started as a script, one of two processes.

RANK=0 WORLD_SIZE=2 ... python -m tests.integration.streamed_copies FOLDER
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from memtrain.families.online import OnlineFamilies
from memtrain.guard import Guard
from memtrain.monitoring.mitigation import Mitigation
from tests.conformance.families import TEXT, build

OTHERS, AGAIN, COPIES, BATCH = 200, 4, 40, 8
CAPTIONS, PICTURES = 2, 10
"""One that more than a tenth of the pictures share would be no level of evidence, and many would be the bulk."""
LEARNT = 0.4
"""What the noise of pictures that come again is multiplied by: their loss is low, as if they were memorized."""

Shared = Literal["picture", "caption"]


class Stream(IterableDataset[dict[str, Any]]):
    """One pass: every visit has a key of its own.

    Args:
        shared: what visits have in common: four times 40 a picture (half of them in a mirror), twice 10 a caption.
        captions: whether the batch holds captions.
    """

    def __init__(self, shared: Shared, *, captions: bool = False) -> None:
        self.shared, self.captions = shared, captions
        visits = [(number, 0) for number in range(OTHERS)]
        times, copies = (AGAIN, COPIES) if shared == "picture" else (CAPTIONS, PICTURES)
        visits += [(OTHERS + number, copy) for number in range(times) for copy in range(copies)]
        # A caption that many of the first few pictures share would be no level of evidence at first.
        first = visits[: OTHERS // 2] if shared == "caption" else []
        rest = visits[len(first) :]
        random.Random(0).shuffle(rest)
        self.visits = first + rest

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, copy in self.visits:
            again = number >= OTHERS
            own = 1000 * number + copy
            picture, text = (own, number) if self.shared == "caption" else (number, own)
            draw = torch.Generator().manual_seed(own)
            latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(picture))
            item = {
                "key": f"{number}-{copy}",
                "latents": latents.flip(-1) if again and copy % 2 else latents,
                "text": torch.randn(TEXT, 16, generator=torch.Generator().manual_seed(10_000_000 + text)),
                "noise": torch.randn(4, 8, 8, generator=draw) * (LEARNT if again else 1.0),
                "timestep": torch.randint(700, (), generator=draw),
            }
            yield {**item, "caption": f"caption {text}"} if self.captions else item

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self, batch_size=BATCH)

    @property
    def again(self) -> set[str]:
        """Keys of what comes again."""
        return {f"{number}-{copy}" for number, copy in self.visits if number >= OTHERS}


class Nothing(Mitigation):
    """Leaves every sample as it is."""


def guarded(
    folder: Path,
    stream: Stream,
    *,
    rank: int = 0,
    world: int = 1,
    cut: int | None = None,
    state: dict[str, Any] | None = None,
    trained_text: bool = False,
    **options: Any,
) -> tuple[Guard, dict[str, Any]]:
    """A loop in plain PyTorch over one pass, or from where `state` was saved, or up to the batch `cut`.

    Returns:
        The guard, and its state before it was over.
    """
    torch.manual_seed(0)
    unet: nn.Module = build("unet")
    scheduler, optimizer = DDPMScheduler(), torch.optim.SGD(unet.parameters(), lr=1e-4)
    given = {
        "reference": False,
        "heldout_share": 0.0,
        "minimum_visits": 6,
        "calibrate_every": 4,
        "mitigations": [Nothing()],
        **options,
    }
    guard = Guard(unet, scheduler, folder=folder, **given)
    if state is not None:
        guard.load_state_dict(state)
    first = 0 if state is None else int(state["engine"]["batches_done"])
    saved: dict[str, Any] = {}
    for number, batch in enumerate(stream.loader()):
        if number < first or number == cut:
            if number == cut:
                break
            continue
        part = {name: value[rank * BATCH // world : (rank + 1) * BATCH // world] for name, value in batch.items()}
        noisy = scheduler.add_noise(part["latents"], part["noise"], part["timestep"])
        text = part["text"].requires_grad_(trained_text)
        prediction = unet(noisy, part["timestep"], text).sample
        guard.loss(prediction, part["noise"], keys=part["key"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    saved = guard.state_dict()
    if cut is None:
        guard.finish()
    else:
        guard.close()
    return guard, saved


def index_of(guard: Guard) -> OnlineFamilies:
    """The index that a guard's run has grown."""
    index = guard.host.families
    assert isinstance(index, OnlineFamilies)
    return index


def families_of(guard: Guard, stream: Stream) -> dict[str, Any]:
    """Names of pictures and captions, by key."""
    index, keys = index_of(guard), [f"{number}-{copy}" for number, copy in stream.visits]
    return {"picture": {key: index.picture(key) for key in keys}, "caption": {key: index.caption(key) for key in keys}}


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    stream = Stream("picture")
    guard, _ = guarded(folder / "run", stream, rank=rank, world=2)
    found = {**families_of(guard, stream), "flagged": guard.calibration.first_flagged}
    torch.save(found, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
