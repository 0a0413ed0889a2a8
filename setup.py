"""Puts the shipped configurations, data and the model into a wheel; everything else stands in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ("configs/**/*.yaml", "assets/*.tar", "assets/NOTICE", "assets/LICENSE*", "assets/tiny-sd/**/*")
"""The files that a run needs, with the licences of the data."""
LEFT_OUT = {"samples.png"}


def shipped_files() -> list[Path]:
    """Relative paths of all shipped files."""
    found = {path for pattern in SHIPPED for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(ROOT) for path in found if path.name not in LEFT_OUT)


class BuildWithShipped(build_py):
    """Copies `configs/` and `assets/` into the folder `shipped` of the package in a wheel, and not in a clone."""

    def run(self) -> None:
        """See setuptools."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "memtrain", "shipped")
        # What an earlier build left in the folder would be packed again.
        shutil.rmtree(target, ignore_errors=True)
        for path in shipped_files():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target / path)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """See setuptools; for uninstalling."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        if not self.editable_mode:
            outputs += [str(Path(self.build_lib, "memtrain", "shipped", path)) for path in shipped_files()]
        return outputs


setup(cmdclass={"build_py": BuildWithShipped})
