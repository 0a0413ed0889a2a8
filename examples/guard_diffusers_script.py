"""Put memtrain into your copy of one of diffusers' text-to-image scripts, as docs/your_own_script.md shows it.

    python examples/guard_diffusers_script.py /path/to/train_text_to_image.py --output patched.py

The lines are those of the docs. A script that has other lines than the docs expect is left alone, with the lines that
were looked for. `--images FOLDER` also writes a small image folder to try it on: clip art, one image of which is there
eighty times.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from memtrain.data.source import open_source
from memtrain.errors import ConfigurationError, MemtrainError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "your_own_script.md"
OPTIONS = {"skip": "Skip flagged samples", "snr": "With min-SNR weights"}
"""Options of the command, and the headings in the docs."""

IMAGES, COPIES = 160, 80


def documented(heading: str) -> list[list[str]]:
    """The hunks that the docs have under a heading, each a list of lines that begin with a space, `-` or `+`."""
    found = re.search(
        rf"^## {re.escape(heading)}\n.*?```diff\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    if found is None or "\n## " in found[0]:
        raise ConfigurationError(
            f"{DOCS.name} shows no lines for {heading}",
            expected=f"one of {', '.join(scripts())}",
            remedy="keep the name that diffusers gave the script, or add the lines by hand, as the docs show them",
        )
    return [hunk.strip("\n").split("\n") for hunk in found[1].split("@@\n")]


def scripts() -> list[str]:
    """Names of the scripts that the docs know."""
    return re.findall(r"^## (\w+\.py)$", DOCS.read_text("utf-8"), re.MULTILINE)


def patched(text: str, hunks: list[list[str]]) -> str:
    """A script with the hunks applied.

    Raises:
        ConfigurationError: if the lines of a hunk are not in it, or more than once.
    """
    for hunk in hunks:
        old = "\n".join(line[1:] for line in hunk if line[0] in " -")
        new = "\n".join(line[1:] for line in hunk if line[0] in " +")
        count = f"\n{text}".count(f"\n{old}\n")
        if count != 1:
            raise ConfigurationError(
                f"The script has these lines {count} times:\n{old}\n",
                expected="them once, as in the version of diffusers that docs/your_own_script.md was written for",
                remedy="find the place in your script by hand, and change it as the docs show",
            )
        text = f"\n{text}".replace(f"\n{old}\n", f"\n{new}\n")[1:]
    return text


def write_images(folder: Path) -> None:
    """An image folder of the embedded clip art: `IMAGES` pictures, and `COPIES` files of the first."""
    source = open_source(str(ROOT / "assets" / "clipart-pd.tar"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place in range(IMAGES + COPIES - 1):
        index, name = max(0, place - COPIES + 1), f"{place:03}.png"
        source.load_image(index).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": source.samples[index].caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def how_to_run(script: str, output: Path, images: Path) -> str:
    """The command that tries the patched script on the embedded model."""
    sdxl = "sdxl" in script
    lines = [
        f"accelerate launch --cpu --num_processes=1 {output}",
        f"--pretrained_model_name_or_path={'<an SDXL folder>' if sdxl else ROOT / 'assets' / 'tiny-sd'}",
        f"--train_data_dir={images} --resolution=64 --caption_column=text --center_crop",
        "--train_batch_size=8 --max_train_steps=90 --learning_rate=1e-3 --seed=0 --output_dir=runs/own_script",
    ]
    return " \\\n  ".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Patch a copy of a script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("script", type=Path, help="your copy of diffusers' script")
    parser.add_argument("--output", type=Path, required=True, help="where the changed copy goes")
    parser.add_argument("--skip", action="store_true", help="skip samples that are flagged")
    parser.add_argument("--snr", action="store_true", help="for runs with --snr_gamma")
    parser.add_argument("--images", type=Path, help="write clip art into this folder, to try it on")
    given = parser.parse_args(arguments)
    headings = [given.script.name, *(heading for option, heading in OPTIONS.items() if getattr(given, option))]
    text = given.script.read_text("utf-8")
    for heading in headings:
        text = patched(text, documented(heading))
    given.output.write_text(text, encoding="utf-8")
    if given.images is not None:
        write_images(given.images)
    command = how_to_run(given.script.name, given.output, given.images or Path("<images>"))
    print(f"Wrote {given.output}. To try it:\n\n{command}")


if __name__ == "__main__":
    try:
        main()
    except MemtrainError as error:
        sys.exit(str(error))
