"""The targets of `benchmarks/fuzz.py`: every reader of files from others, with small inputs to begin with.

A reader ends in a value or in an error of :mod:`memtrain.errors`. Anything else is a finding. Readers are imported when
they are asked for, so that they can be watched while they are imported.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: the name for the table.
        make: imports what is needed; what comes of it takes an input.
        seeds: inputs to begin from.
    """

    name: str
    make: Callable[[], Callable[[bytes], object]]
    seeds: tuple[bytes, ...]


def in_file(name: str, reader: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of a file of this name."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    path = folder / name

    def call(data: bytes) -> object:
        path.write_bytes(data)
        return reader(path)

    return call


def _yaml() -> Callable[[bytes], object]:
    from memtrain.cli.command_parser import check_config

    return in_file("a.yaml", lambda path: check_config(str(path)))


def _settings() -> Callable[[bytes], object]:
    from memtrain.cli.evaluation import read_command

    def call(data: bytes) -> object:
        try:
            return read_command(["detect", "--prompts", "a", "--config", write(data)])
        except SystemExit as ended:  # a usage error, which was said
            return ended

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def write(data: bytes) -> str:
        (folder / "a.yaml").write_bytes(data)
        return str(folder / "a.yaml")

    return call


def _run() -> Callable[[bytes], object]:
    from memtrain.cli.run_folder import run_data

    return in_file("config.yaml", lambda path: run_data(path.parent))


def _prompts(name: str) -> Callable[[], Callable[[bytes], object]]:
    def make() -> Callable[[bytes], object]:
        from memtrain.evaluation.stages.prompts import read_prompts

        return in_file(name, lambda path: read_prompts(str(path)))

    return make


def _captions() -> Callable[[bytes], object]:
    from memtrain.data.caption_file import read_captions

    return in_file("captions.jsonl", read_captions)


def _metadata(name: str) -> Callable[[], Callable[[bytes], object]]:
    def make() -> Callable[[bytes], object]:
        from memtrain.data.image_folder import ImageFolderSource

        call = in_file(name, lambda path: ImageFolderSource(path.parent))
        return call

    return make


def _tar() -> Callable[[bytes], object]:
    from memtrain.data.webdataset import WebDatasetSource

    return in_file("a.tar", lambda path: WebDatasetSource(str(path)))


def _keys() -> Callable[[bytes], object]:
    from memtrain.data.selection import read_keys

    return in_file("flagged.csv", lambda path: read_keys(str(path)))


def _families() -> Callable[[bytes], object]:
    from memtrain.families.table import Families

    return in_file("families.parquet", Families.read)


def _scan() -> Callable[[bytes], object]:
    from memtrain.families.scan_result import read_scan

    return in_file("scan.json", lambda path: read_scan(path.parent))


def _adapters() -> Callable[[bytes], object]:
    from memtrain.models.adapter_file import adapter_path

    return in_file("a.safetensors", adapter_path)


def _single_file() -> Callable[[bytes], object]:
    from memtrain.models.single_file import checkpoint_kind

    return in_file("a.safetensors", checkpoint_kind)


def _mask() -> Callable[[bytes], object]:
    from memtrain.models.neuron_mask import NeuronMask

    return in_file("mask.safetensors", NeuronMask.load)


def _masks() -> Callable[[bytes], object]:
    from memtrain.localization.results import load_masks

    return in_file("masks.safetensors", load_masks)


def _statistics() -> Callable[[bytes], object]:
    from memtrain.localization.statistics import ActivationStatistics

    return in_file("statistics.safetensors", ActivationStatistics.load)


def _authors() -> Callable[[bytes], object]:
    from memtrain.localization.authors_files import read_tensors

    return in_file("statistics.pt", read_tensors)


def _checkpoint() -> Callable[[bytes], object]:
    from memtrain.cli.checkpoint_model import read_checkpoint

    return in_file("a.ckpt", read_checkpoint)


def _threshold() -> Callable[[bytes], object]:
    from memtrain.localization.threshold import Threshold

    return in_file("threshold.json", Threshold.load)


def _results() -> Callable[[bytes], object]:
    from memtrain.evaluation.report.section import results_of

    return in_file("detection.json", lambda path: results_of(path.parent, path.name))


def _index() -> Callable[[bytes], object]:
    from memtrain.models.pretrained import check_folder

    return in_file("model_index.json", lambda path: check_folder(path.parent))


def safetensors(metadata: dict[str, str] | None = None, **shapes: list[int]) -> bytes:
    """A file with zeros of these shapes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = 4 * int(bool(shape)) * (shape[0] if shape else 1) or 4
        header[name.replace("__", ".").replace("_of_", "/")] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def tar(**files: bytes) -> bytes:
    """A tar of these files; `__` in a name is a dot."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


ROWS = b'{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "text": ["a", "b"]}\n'
MASK = {"format": "memtrain.neuron_mask.1", "factor": "0.0"}
KNOWN = {"format": "memtrain.activation_statistics.1", "layers": '["a"]', "origin": '{"count": 3}'}
TARGETS = (
    Target("yaml", _yaml, (b"a: {b: [1, 2]}\nc: &x {d: e}\nf: *x\n", b"a: !!str b\n<<: {c: d}\n", b"? [a]\n: b\n")),
    Target(
        "settings of a stage",
        _settings,
        (b"steps: 3\nseed: 1\n", b"detectors:\n- class_path: a.B\n  init_args: {c: 1}\n"),
    ),
    Target(
        "config of a run",
        _run,
        (b"data:\n  class_path: memtrain.data.module.TextImageDataModule\n  init_args: {path: a}\n",),
    ),
    Target("prompts.txt", _prompts("p.txt"), (b"a cat\nb\n\n", "ä\u202e\r\n".encode())),
    Target("prompts.csv", _prompts("p.csv"), (b'prompt,memorized,seed\n"a, b",1,3\nc,no,\n', b'a\n"b\n')),
    Target("prompts.jsonl", _prompts("p.jsonl"), (b'{"caption": "a", "memorized": true, "seed": 1}\n',)),
    Target("prompts.json", _prompts("p.json"), (b'[{"prompt": "a", "memorized": 0}]', b'["a", "b"]')),
    Target("captions", _captions, (ROWS, b'{"key": "a", "caption": "b"}\n')),
    Target("metadata.jsonl", _metadata("metadata.jsonl"), (ROWS,)),
    Target("metadata.csv", _metadata("metadata.csv"), (b'file_name,text\na.png,"a, cat"\n',)),
    Target("tar index", _tar, (tar(a__png=b"x", a__txt=b"a cat", b__jpg=b"x", b__json=b'{"caption": "b"}'),)),
    Target("key tables", _keys, (b"key\na\nb\n", b"key,score\n'=a,0.5\n")),
    Target("families", _families, (b"PAR1\x15\x04\x15\x10PAR1",)),
    Target("scan", _scan, (b'{"path": "a", "threshold": 0.5}',)),
    Target("adapters", _adapters, (safetensors(unet__a__lora_A__weight=[2], unet__a__lora_B__weight=[2]),)),
    Target("single files", _single_file, (safetensors(model__diffusion_model__input_blocks__0__0__weight=[4]),)),
    Target("neuron masks", _mask, (safetensors(MASK, a=[2]),)),
    Target("masks of prompts", _masks, (safetensors({"format": "memtrain.neuron_masks.1", "masks": "[]"}, a=[2]),)),
    Target("statistics", _statistics, (safetensors(KNOWN, mean_of_a=[3], std_of_a=[3]),)),
    Target("authors' statistics", _authors, (b"\x80\x02]q\x00.", b"PK\x03\x04")),
    Target("checkpoints", _checkpoint, (b"\x80\x02}q\x00.", b"PK\x03\x04")),
    Target("thresholds", _threshold, (b'{"threshold": 0.4, "settings": {}, "scores": [0.1, 0.2]}',)),
    Target("results", _results, (b'{"model": "a", "detectors": {"b": {"auroc": 0.5}}}',)),
    Target(
        "model_index.json",
        _index,
        (b'{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}',),
    ),
)
