"""Which images of a source cannot be decoded, found before any work is done, all of them at once.

What: every image is decoded once, by several threads, but for those that are not going to be used. Where there are more
than :data:`MOST` images this would take longer than it saves: they are then checked where they are used first. An image
that a scan for families has looked at is not decoded again.
Cost: 1 ms for an image of 512 pixels, 83 ms for one of 12 megapixels, on each core.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm.auto import tqdm

from memtrain.data.broken import TOLD, Broken, BrokenSamples
from memtrain.data.source import SampleSource, broken_of
from memtrain.errors import DataError
from memtrain.families.looking import default_workers

MOST = 10_000
"""Images that are decoded before training only to see whether that can be done."""


def leave_out(
    broken: BrokenSamples,
    sources: Sequence[SampleSource],
    *,
    scanned: Collection[str] | None,
    look: bool,
    every: bool,
    without: Collection[str],
    write: bool,
) -> set[str]:
    """Find what cannot be used of some sources, and stop, or say what is left out.

    Args:
        broken: what is to become of it; takes in what is found.
        sources: of all images, that of the training images first; one may occur several times.
        scanned: keys of that one's images which a scan could not read; None if nobody looked at them all.
        look: remember size and content of each image, which are going to be asked for.
        every: look at all images, however many there are.
        without: keys that are not looked at.
        write: whether this process writes the list.

    Returns:
        Keys of the samples that are left out.

    Raises:
        DataError: if the run stops because of them.
    """
    wrong, different = [], list({id(one): one for one in sources}.values())
    for source in different:
        broken.add(one for one in source.broken if one.key not in without or not one.key)
        if source is sources[0] and scanned is not None and not look:
            rows = [row for row, sample in enumerate(source.samples) if sample.key in scanned] if scanned else []
        else:
            rows = list(range(len(source))) if look or every or len(source) <= MOST else []
        wrong += unreadable(source, rows, look=look, without=without)
    listed = len(broken)
    broken.add(one for one, _ in wrong)
    if not broken.skips and not listed and wrong:
        if write:
            broken.write()
        refuse(sources[0], wrong, kept=broken.place)
    broken.decide(
        sum(len(one) + sum(lost.samples for lost in one.broken) for one in different), path=sources[0].path, write=write
    )
    return {one.key for one in broken if one.key}


def unreadable(
    source: SampleSource, rows: Sequence[int], *, look: bool = False, without: Collection[str] = ()
) -> list[tuple[Broken, DataError]]:
    """The images that cannot be decoded, and why.

    Args:
        source: of them.
        rows: of the samples that are looked at.
        look: remember size and content of each, which are going to be asked for.
        without: keys that are not looked at.
    """
    check = source.look if look else source.load_image

    def problem(index: int) -> tuple[Broken, DataError] | None:
        try:
            check(index)
        except DataError as error:
            return broken_of(source, index, error), error
        return None

    rows = [row for row in rows if source.samples[row].key not in without]
    # On a terminal alone: in a log a bar would run into the line that follows.
    bar: dict[str, Any] = {"unit": "image", "leave": False, "mininterval": 0.5, "disable": None}
    with ThreadPoolExecutor(default_workers()) as pool:
        found = list(tqdm(pool.map(problem, rows), "checking images", len(rows), **bar))
    return [one for one in found if one is not None]


def look_ahead(source: SampleSource, kept: Any, *, without: Collection[str]) -> None:
    """Look at every image of a source that is not known yet, and keep what was seen for other processes and starts.

    Args:
        source: of the images; what is broken, :func:`leave_out` says.
        kept: its :class:`memtrain.data.kept_looks.KeptLooks`.
        without: keys that are not looked at.
    """
    source.kept_looks = kept
    unreadable(source, range(len(source)), look=True, without=without)
    kept.keep()


def check_images(source: SampleSource, *, look: bool = False, without: Collection[str] = ()) -> None:
    """Refuse a source with images that cannot be decoded; arguments as for :func:`unreadable`.

    Raises:
        DataError: if some cannot be read.
    """
    refuse(source, unreadable(source, range(len(source)), look=look, without=without))


def refuse(source: SampleSource, wrong: list[tuple[Broken, DataError]], *, kept: str = "") -> None:
    """Raise one error for all of them.

    Args:
        source: of the images.
        wrong: of :func:`unreadable`.
        kept: where all are listed.

    Raises:
        DataError: if there are any.
    """
    if len(wrong) == 1:
        raise wrong[0][1]
    if wrong:
        first = "; ".join(f"{one.key!r}: {one.reason}" for one, _ in wrong[:TOLD])
        raise DataError(
            f"{len(wrong)} of {len(source)} images in {source.path} cannot be read, first {first}{kept}",
            expected="image files that Pillow decodes (PNG, JPEG, WebP, ...)",
            remedy="repair or remove these samples, then start again; or leave them out (--data.init_args.broken skip)",
        )
