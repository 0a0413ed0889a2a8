"""Results of a search: masks by prompt, a table, and their files.

A folder holds `search.json` with settings, threshold and model; results with other settings are refused. It also holds
`prompts/` with one JSON file per prompt, from which an interrupted search goes on, `localization.parquet` with one row
per prompt, and `masks.safetensors` with one int64 tensor per prompt and site. Several processes can write to one
folder, because each prompt has its own file. The last process writes the tables of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.text import json_of, read_json, read_json_object
from memtrain.localization.found import Found
from memtrain.models.neuron_mask import NeuronMask
from memtrain.records import write_parquet, written_whole

MASKS_FORMAT = "memtrain.prompt_masks.1"


@dataclass(frozen=True)
class Localization(Mapping[str, NeuronMask]):
    """Neuron masks by prompt, for the prompts that count as memorized and have neurons.

    Attributes:
        found: the results for every prompt, memorized or not.
        sites: the names of the searched layers.
        search: the settings, threshold and model, as in `search.json`.
    """

    found: tuple[Found, ...]
    sites: tuple[str, ...]
    search: dict[str, Any]
    _masks: dict[str, NeuronMask] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        masks = {one.prompt: self.mask(one) for one in self.found if one.neurons}
        object.__setattr__(self, "_masks", masks)

    def mask(self, found: Found) -> NeuronMask:
        """Make the mask of one prompt."""
        return NeuronMask(found.channels(self.sites), factor=self.search["settings"]["factor"])

    def __getitem__(self, prompt: str) -> NeuronMask:
        return self._masks[prompt]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def union(self) -> NeuronMask | None:
        """Join all prompts' neurons in one mask; None if there are none."""
        return union(list(self._masks.values()))

    @property
    def table(self) -> pa.Table:
        """Table with one row per prompt: scores, kept seeds, neurons per layer, calls and seconds."""
        rows = [
            {
                "prompt": one.prompt,
                "memorized": one.memorized,
                "score_unmasked": one.similarity,
                "score_masked": one.score,
                "threshold": self.search["threshold"],
                "refinement_threshold": one.refinement_threshold,
                "kept_seeds": one.kept_seeds,
                "theta": one.theta,
                "k": one.k,
                "score_initial": one.initial_score,
                "initial_candidates": sum(map(len, one.initial)),
                "initial_neurons": sum(len(set(neurons)) for neurons in one.initial),
                "refined_neurons": one.neurons,
                "refined_per_layer": [len(set(neurons)) for neurons in one.refined] or [0] * len(self.sites),
                "denoiser_calls": one.calls,
                "denoiser_images": one.images,
                "seconds": one.seconds,
            }
            for one in self.found
        ]
        return pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({"search": json.dumps(self.search)}))

    def save(self, folder: Path) -> None:
        """Write `localization.parquet` and `masks.safetensors`."""
        write_parquet(self.table, folder / "localization.parquet")
        save_masks(self, folder / "masks.safetensors")

    @staticmethod
    def load(folder: Path) -> Localization:
        """Read the results in the prompts' files of a folder.

        Raises:
            ConfigurationError: if the folder holds no search.
        """
        search = read_search(folder)
        if search is None:
            raise ConfigurationError(
                f"{folder} holds no search for neurons",
                expected="search.json, as locate(..., output=folder) writes it",
                remedy="check the path",
            )
        paths = sorted((folder / "prompts").glob("*.json"))
        return Localization(tuple(map(_read, paths)), tuple(search["sites"]), search)


_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("memorized", pa.bool_()),
        ("score_unmasked", pa.float64()),
        ("score_masked", pa.float64()),
        ("threshold", pa.float64()),
        ("refinement_threshold", pa.float64()),
        ("kept_seeds", pa.int32()),
        ("theta", pa.float64()),
        ("k", pa.int32()),
        ("score_initial", pa.float64()),
        ("initial_candidates", pa.int32()),
        ("initial_neurons", pa.int32()),
        ("refined_neurons", pa.int32()),
        ("refined_per_layer", pa.list_(pa.int32())),
        ("denoiser_calls", pa.int32()),
        ("denoiser_images", pa.int32()),
        ("seconds", pa.float64()),
    ]
)


def union(masks: Sequence[NeuronMask]) -> NeuronMask | None:
    """The neurons of all masks in one; None if there are none."""
    whole = masks[0] if masks else None
    for mask in masks[1:]:
        assert whole is not None
        whole = whole | mask
    return whole


def save_masks(masks: Mapping[str, NeuronMask], path: Path) -> None:
    """Write the masks of many prompts: tensors `<number>/<site>`, the prompts and factors in the metadata."""
    tensors: dict[str, torch.Tensor] = {}
    entries = []
    for number, (prompt, mask) in enumerate(masks.items()):
        entries.append({"prompt": prompt, "factor": mask.factor})
        tensors |= {f"{number}/{site}": torch.tensor(chosen) for site, chosen in mask.channels.items()}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, metadata={"format": MASKS_FORMAT, "masks": json.dumps(entries)})


def load_masks(path: Path) -> dict[str, NeuronMask]:
    """Read a file that :func:`save_masks` wrote.

    Raises:
        ConfigurationError: if it is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != MASKS_FORMAT:
                raise SafetensorError(f"its format is {metadata.get('format')!r}")
            channels: dict[int, dict[str, list[int]]] = {}
            for name in file.keys():  # noqa: SIM118
                number, _, site = name.partition("/")
                channels.setdefault(int(number), {})[site] = file.get_tensor(name).tolist()
            entries = json_of(metadata["masks"], "its list of masks")
            return {
                entry["prompt"]: NeuronMask(channels[number], factor=float(entry["factor"]))
                for number, entry in enumerate(entries)
            }
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, DataError) as error:
        raise ConfigurationError(
            f"{path} holds no masks: {error}",
            expected=f"a safetensors file of format {MASKS_FORMAT}",
            remedy="check the path",
        ) from error


def prompt_file(folder: Path, prompt: str) -> Path:
    """Where the result of a prompt lies."""
    return folder / "prompts" / f"{hashlib.sha256(prompt.encode()).hexdigest()[:24]}.json"


def write_found(folder: Path, found: Found) -> None:
    """Write the result of one prompt, completely or not at all."""
    _write_json(prompt_file(folder, found.prompt), asdict(found))


def read_known(folder: Path, prompts: Sequence[str]) -> dict[str, Found]:
    """The results in a folder, of these prompts."""
    return {prompt: _read(path) for prompt in prompts if (path := prompt_file(folder, prompt)).is_file()}


def _read(path: Path) -> Found:
    try:
        content = read_json(path)
        for name in ("initial", "refined"):
            content[name] = tuple(tuple(neurons) for neurons in content[name])
        content["pairs"] = tuple(content.get("pairs", ()))
        return Found(**content)
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} holds no result of a search: {error}",
            expected="JSON as the search writes it",
            remedy="delete the file; the prompt is searched again",
        ) from error


def open_search(folder: Path, search: dict[str, Any]) -> None:
    """Make a folder the place of one search.

    Raises:
        ConfigurationError: if it holds another one.
    """
    known = read_search(folder)
    if known is None:
        _write_json(folder / "search.json", search)
        return
    differing = sorted(name for name in {*known, *search} if known.get(name) != search.get(name))
    if differing:
        shown = {name: (known.get(name), search.get(name)) for name in differing}
        raise ConfigurationError(
            f"{folder} holds a search with another {', '.join(differing)}: {shown}",
            expected="the same search in one folder",
            remedy="use another folder, or the settings of search.json",
        )


def read_search(folder: Path) -> dict[str, Any] | None:
    """The content of `search.json`; None if there is none.

    Raises:
        ConfigurationError: if it is spoilt.
    """
    path = folder / "search.json"
    if not path.is_file():
        return None
    try:
        return read_json_object(path, what="the settings of a search", remedy="name another folder")
    except DataError as error:
        raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error


def _write_json(path: Path, content: Any) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
