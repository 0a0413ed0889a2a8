"""The examples run as they stand, with fewer steps."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from safetensors import safe_open

from memtrain.data.source import open_source
from memtrain.records import read_steps, read_table
from tests.conftest import ROOT

FOLDER = ROOT / "examples"
pytestmark = pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports an example, in the repository's folder."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def imported(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return imported


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., str]:
    """Writes a folder of pictures with .txt captions, taken from a shard of the repository."""

    def written(shard: str, *, count: int, name: str) -> str:
        source, folder = open_source(str(ROOT / "assets" / shard)), tmp_path / name
        folder.mkdir()
        for index in range(count):
            source.load_image(index).save(folder / f"{index:03}.png")
            (folder / f"{index:03}.txt").write_text(source.samples[index].caption, encoding="utf-8")
        return str(folder)

    return written


def test_the_list_names_every_example() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(listed) == files


def test_a_loop_of_ones_own(
    example: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = example("own_loop").main(folder=str(tmp_path), steps=10)
    assert guard.host.step == 10
    rows = read_steps(tmp_path / "records")
    assert len(rows) == 10 * 8
    assert any(weight == 0 for weight in rows["weight"].to_pylist())
    assert all(caption for caption in read_table(tmp_path / "records", "evidence")["caption"].to_pylist())
    assert "repeated images flagged" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loop_flags_what_is_repeated(
    example: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = example("own_loop").main(folder=str(tmp_path))
    assert len(guard.calibration.first_flagged) == 4
    assert re.search(r"repeated images flagged: \[\d+, \d+, \d+, \d+\] .*others flagged: 0;", capsys.readouterr().out)


@pytest.mark.slow
def test_a_lora_with_accelerate(
    example: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("accelerate_lora")
    module.main(folder=str(tmp_path), steps=8)
    keys = read_steps(tmp_path / "records")["key"].to_pylist()
    assert len(keys) == 8 * 12
    assert max(map(keys.count, keys)) > 8  # the repeated picture
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names and all(name.startswith("unet.") for name in names)
    assert "The repeated picture was flagged at step none" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader. but have no .validation_step.:UserWarning")
def test_a_module_of_ones_own(
    example: Callable[[str], ModuleType], pictures: Callable[..., str], tmp_path: Path
) -> None:
    path = pictures("clipart-pd.tar", count=40, name="data")
    monitor = example("own_module").main(path, folder=str(tmp_path / "run"), steps=3, repeats=4)
    assert monitor.calibration.heldout is not None
    assert (tmp_path / "profiles").is_dir()
    assert len(set(read_steps(tmp_path / "run" / "records")["key"].to_pylist())) > 8


@pytest.mark.slow
def test_a_mitigation_of_ones_own_is_trained_with(
    pictures: Callable[..., str], pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memtrain.cli.command import main

    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(FOLDER))
    run, data = tmp_path / "run", pictures("clipart-pd.tar", count=30, name="data")
    words = [
        *["train", "--config", "configs/tiny_baseline.yaml", "--config", "examples/own_mitigation.yaml"],
        *["--trust", "own_mitigation", "--trainer.max_steps", "2", "--trainer.default_root_dir", str(run)],
        *["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "2"],
        *["--model.init_args.pretrained", str(pipeline_folder), "--data.init_args.path", data],
        *["--data.init_args.resolution", "16", "--data.init_args.batch_size", "4"],
        *["--data.init_args.scan.folder", str(tmp_path / "scan")],
    ]
    monkeypatch.setattr(sys, "argv", ["memtrain", *words])
    main(words)
    callbacks = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["trainer"]["callbacks"]
    assert callbacks[-1] == {"class_path": "own_mitigation.FadingSamples", "init_args": {"half": 4.0}}
    assert read_steps(run / "records").num_rows == 8


def test_the_mitigation_of_ones_own_fades(example: Callable[[str], ModuleType]) -> None:
    import torch

    from memtrain.evidence.flags import Flags
    from memtrain.models.observation import Observation

    flagged = torch.tensor([False, True, True])
    flags = Flags(flagged, flagged, torch.zeros(3), 1.0, ["a", "b", "c"], visits=lambda keys: [9, 2, 8])
    weights = example("own_mitigation").FadingSamples(half=4.0).weights(Observation(["a", "b", "c"]), flags)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2**-0.5, 0.25]))


@pytest.mark.slow
def test_an_audit(
    example: Callable[[str], ModuleType],
    pictures: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = pictures("emoji-train.tar", count=10, name="data")
    heldout = pictures("emoji-heldout.tar", count=18, name="heldout")
    results = example("audit_a_model").main(
        data=data, heldout=heldout, folder=str(tmp_path / "audit"), prompts=10, images_per_prompt=1
    )
    assert json.loads((tmp_path / "audit" / "results.json").read_text(encoding="utf-8"))["verdict"]["asked"] == 10
    assert (tmp_path / "audit" / "report.html").is_file()
    assert f"{results['verdict']['level']}: " in capsys.readouterr().out


@pytest.mark.slow
def test_detection_and_a_mask(
    example: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the embedded model, which memorized none of these: the numbers are there, and the mask changes images."""
    shutil.copytree(ROOT / "assets" / "tiny-sd", tmp_path / "run" / "pipeline")
    captions = [one.caption for one in open_source(str(ROOT / "assets" / "clipart-pd.tar")).samples[:2]]
    rows = ["key,caption", *(f'{number},"{text}"' for number, text in enumerate(captions))]
    (tmp_path / "run" / "flagged.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = example("detect_and_mask").main(str(tmp_path / "run" / "pipeline"), ordinary=3, steps=3)
    assert found["neurons"] > 100
    assert found["before"] != found["after"]
    assert "guidance_norm_1" in capsys.readouterr().out
