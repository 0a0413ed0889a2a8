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

from memtrain.data.broken import TOLD, Broken, BrokenSamples
from memtrain.data.source import SampleSource
from memtrain.errors import DataError
from memtrain.families.looking import default_workers
from memtrain.files.pictures import reason
from memtrain.files.progress import progress_bar

MOST = 10_000
"""Images that are decoded before training only to see whether that can be done."""


def leave_out(
    broken: BrokenSamples,
    sources: Sequence[SampleSource],
    *,
    scanned: Collection[str] | None,
    look: bool,
    remember: bool = False,
    every: bool,
    without: Collection[str],
    trainer: Any,
) -> set[str]:
    """Find what cannot be used of some sources, and stop, or say what is left out.

    Args:
        broken: what is to become of it; takes in what is found.
        sources: of all images, that of the training images first; one may occur several times.
        scanned: keys of that one's images which a scan could not read; None if nobody looked at them all.
        look: remember size and content of each image, which are going to be asked for.
        remember: do so of those that are looked at anyway.
        every: look at all images, however many there are.
        without: keys that are not looked at.
        trainer: of this process, whose first process says what is left out and writes the list; None for no other.

    Returns:
        Keys of the samples that are left out.

    Raises:
        DataError: if the run stops because of them.
    """
    wrong, write = [], getattr(trainer, "global_rank", 1) == 0
    different = list({id(one): one for one in sources}.values())
    for source in different:
        broken.add(one for one in source.broken if one.key not in without or not one.key)
        if source is sources[0] and scanned is not None and not look:
            rows = [row for row, sample in enumerate(source.samples) if sample.key in scanned] if scanned else []
        else:
            rows = list(range(len(source))) if look or every or len(source) <= MOST else []
        wrong += unreadable(source, rows, look=look or remember, without=without)
    listed = len(broken)
    gone = _agreed(trainer, broken, sources[0], {key: one for key, one, _ in wrong})
    broken.add(gone.values())
    if not broken.skips and not listed and wrong:
        if write:
            broken.write()
        refuse(sources[0], [(one, error) for _, one, error in wrong], kept=broken.place)
    broken.decide(
        sum(len(one) + sum(lost.samples for lost in one.broken) for one in different), path=sources[0].path, write=write
    )
    return {one.key for one in broken if one.key} | set(gone)


def _agreed(trainer: Any, broken: BrokenSamples, source: SampleSource, wrong: dict[str, Broken]) -> dict[str, Broken]:
    """The broken images that the first process found, by key.

    Raises:
        DataError: in all processes, if they do not list the same samples.
    """
    strategy = getattr(trainer, "strategy", None)
    if strategy is None:
        return wrong
    own = len(source), sorted((one.key, one.shard) for one in broken)
    first, found = strategy.broadcast((own, wrong), src=0)
    if not strategy.reduce_boolean_decision(own == first, all=True):
        raise DataError(
            f"The processes of this run do not see the same data in {source.path}: process {trainer.global_rank} sees "
            f"{own[0]:,} samples and {len(own[1])} that cannot be used, the first one {first[0]:,} and {len(first[1])}",
            expected="a folder that all nodes share, and whose files do not change when a run begins",
            remedy="start again when all nodes see all files",
        )
    return dict(found)


def unreadable(
    source: SampleSource, rows: Sequence[int], *, look: bool = False, without: Collection[str] = ()
) -> list[tuple[str, Broken, DataError]]:
    """The images that cannot be decoded, by key, and why.

    Args:
        source: of them.
        rows: of the samples that are looked at.
        look: remember size and content of each, which are going to be asked for.
        without: keys that are not looked at.
    """
    check = source.look if look else source.load_image

    def problem(index: int) -> tuple[str, Broken, DataError] | None:
        try:
            check(index)
        except DataError as error:
            return source.samples[index].key, broken_of(source, index, error), error
        return None

    rows = [row for row in rows if source.samples[row].key not in without]
    with ThreadPoolExecutor(default_workers()) as pool:
        done = progress_bar(pool.map(problem, rows), "checking images", len(rows), unit="image", leave=False)
        found = list(done)
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


def broken_of(source: SampleSource, index: int, error: DataError) -> Broken:
    """What is listed of a sample whose image cannot be read."""
    where = source.stored_in(index)
    if where is not None and source.shared(index) > 1 and not where.exists():
        return Broken("", str(where), "the shard is gone", source.shared(index))
    why = reason(error.__cause__) if isinstance(error.__cause__, Exception) else error.problem
    return Broken(source.samples[index].key, "" if where is None else str(where), why)
