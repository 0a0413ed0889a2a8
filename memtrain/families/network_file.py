"""Networks from files of your own: TorchScript or ONNX. None is downloaded.

TorchScript (`.pt`, `.torchscript`) is a program: loading it runs it. So it is loaded only with the user's permission:
`--trust torchscript` on the command line, :func:`trust_scripts` or an argument in Python. Give it for files from people
you trust, such as the authors' releases. ONNX (`.onnx`) is data and needs the package onnxruntime.
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
    """Allow TorchScript files in this process from now on, or forbid them again."""
    _trusted[0] = trusted


@dataclass(frozen=True)
class Network:
    """A loaded network.

    Attributes:
        run: the function from its input to its output.
        takes_pixels: whether it takes images as uint8 and normalizes them itself.
    """

    run: Callable[[Tensor], Tensor]
    takes_pixels: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Compute `(n, D)` fp32 from images `(n, 3, H, W)`.

        Raises:
            ConfigurationError: if the images are of another kind than the network's input.
        """
        if (images.dtype == torch.uint8) != self.takes_pixels:
            raise ConfigurationError(
                f"The network takes {'uint8 pixels' if self.takes_pixels else 'normalized images'}, not {images.dtype}",
                expected="images of the kind that the network's file was made for",
                remedy="use a file of the other kind: the conventions of papers normalize images themselves",
            )
        return self.run(images)


def load_network(
    path: str | Path, *, device: torch.device | str = "cpu", ask_for: str | None = None, trusted: bool = False
) -> Network:
    """Load a network from a file. A TorchScript file runs its code: load only files that you trust.

    Args:
        path: the path of an `.onnx` file, or of TorchScript under any other name.
        device: the device of a TorchScript network; ONNX runs on the CPU.
        ask_for: an argument of a TorchScript network's forward that is set to True, if it has one of this name.
        trusted: whether this file may be TorchScript, in addition to :func:`trust_scripts`.

    Raises:
        ConfigurationError: if the file does not exist or is not a network, if it is TorchScript that is not trusted, or
            if onnxruntime is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(
            f"{path} does not exist", expected="a TorchScript or ONNX file", remedy="download the weights"
        )
    if path.suffix.lower() == ".onnx":
        return _onnx(path)
    if not trusted and not _trusted[0]:
        raise ConfigurationError(
            f"{path} is TorchScript, a program that runs when it is loaded",
            expected="an ONNX file (.onnx), or your permission to run this file",
            remedy="if it is from people you trust, add --trust torchscript to the command line (in Python: "
            "memtrain.families.network_file.trust_scripts())",
        )
    try:
        with warnings.catch_warnings():
            # torch asks for an exported program instead, but the published weights are TorchScript.
            warnings.filterwarnings("ignore", message=".*torch.jit.load", category=DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{path} is not a TorchScript archive: {' '.join(str(error).split())[:200]}",
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
    # Imported by name, because it is not a dependency of memtrain.
    package = import_module("onnxruntime")
    options = package.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class that it exports
        raise ConfigurationError(
            f"{path} is not an ONNX file that onnxruntime can run: {' '.join(str(error).split())[:200]}",
            expected="an ONNX file of a network",
            remedy="check the file",
        ) from error
    wanted = session.get_inputs()[0]
    pixels, channels_last = wanted.type == "tensor(uint8)", len(wanted.shape) == 4 and wanted.shape[3] == 3

    def run(images: Tensor) -> Tensor:
        given = images.permute(0, 2, 3, 1) if channels_last else images
        return torch.from_numpy(session.run(None, {wanted.name: given.cpu().contiguous().numpy()})[0]).float()

    return Network(run, pixels)
