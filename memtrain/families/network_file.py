"""Networks from files of your own: TorchScript or ONNX. None is downloaded.

TorchScript (`.pt`, `.torchscript`) is a program: loading one runs what is in it, so it is loaded only where the user
says so: `--trust torchscript` on the command line, :func:`trust_scripts` or an argument in Python. Say it of files from
people you trust, such as the authors' releases. ONNX (`.onnx`) is data; it needs the package onnxruntime.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError

_trusted = [False]


def trust_scripts(trusted: bool = True) -> None:
    """Load TorchScript files in this process from now on, or no longer."""
    _trusted[0] = trusted


@dataclass(frozen=True)
class Network:
    """A network that was loaded.

    Attributes:
        run: from its input to its output.
        takes_pixels: whether it takes images as they are, uint8, and normalises them itself.
    """

    run: Callable[[Tensor], Tensor]
    takes_pixels: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """From `(n, 3, H, W)` to `(n, D)` fp32.

        Raises:
            ConfigurationError: if the images are not of the kind that the network takes.
        """
        if (images.dtype == torch.uint8) != self.takes_pixels:
            raise ConfigurationError(
                f"The network takes {'uint8 pixels' if self.takes_pixels else 'normalised images'}, not {images.dtype}",
                expected="images of the kind that the network's file was made for",
                remedy="use a file of the other kind: conventions of papers normalise images themselves",
            )
        return self.run(images)


def load_network(
    path: str | Path, *, device: torch.device | str = "cpu", ask_for: str | None = None, trusted: bool = False
) -> Network:
    """A network from a file. A TorchScript file runs what is in it: load only what you trust.

    Args:
        path: `.onnx`, or TorchScript under any other name.
        device: where a TorchScript network runs; ONNX runs on the CPU.
        ask_for: an argument of a TorchScript network's forward that is set to True, if it has one of this name.
        trusted: whether this file may be TorchScript, beside what :func:`trust_scripts` says.

    Raises:
        ConfigurationError: if the file does not exist or is no network, is TorchScript that is not trusted, or
            onnxruntime is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(
            f"{path} does not exist", expected="a TorchScript or ONNX file", remedy="download the weights yourself"
        )
    if path.suffix.lower() == ".onnx":
        return _onnx(path)
    if not trusted and not _trusted[0]:
        raise ConfigurationError(
            f"{path} is TorchScript, a program that runs when it is loaded",
            expected="an ONNX file (.onnx), or your word that you trust this file",
            remedy="if it is from people you trust, add --trust torchscript to the command line (in Python: "
            "memtrain.families.network_file.trust_scripts())",
        )
    try:
        with warnings.catch_warnings():
            # torch would rather have an exported program, but the published weights are TorchScript.
            warnings.filterwarnings("ignore", message=".*torch.jit.load", category=DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{path} is no TorchScript archive: {' '.join(str(error).split())[:200]}",
            expected="a file such as sscd_disc_mixup.torchscript.pt",
            remedy="check the file",
        ) from error

    options = {argument.name: True for argument in network.forward.schema.arguments if argument.name == ask_for}

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        found: Tensor = network(images.to(device), **options)
        return found.float().cpu()

    return Network(run)


def _onnx(path: Path) -> Network:
    if find_spec("onnxruntime") is None:
        raise ConfigurationError(
            f"{path} needs onnxruntime, which is not installed",
            expected="the package onnxruntime, or a TorchScript file",
            remedy="pip install onnxruntime",
        )
    # By name: it is no dependency of ours.
    package = import_module("onnxruntime")
    options = package.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class that it exports
        raise ConfigurationError(
            f"{path} is no ONNX file that onnxruntime can run: {' '.join(str(error).split())[:200]}",
            expected="an ONNX file of a network",
            remedy="check the file",
        ) from error
    wanted = session.get_inputs()[0]
    pixels, channels_last = wanted.type == "tensor(uint8)", len(wanted.shape) == 4 and wanted.shape[3] == 3

    def run(images: Tensor) -> Tensor:
        given = images.permute(0, 2, 3, 1) if channels_last else images
        return torch.from_numpy(session.run(None, {wanted.name: given.cpu().contiguous().numpy()})[0]).float()

    return Network(run, pixels)
