"""The search for images that cannot be decoded, before any work is done.

Every image that is going to be used is decoded once, by several threads. With more than :data:`MOST` images this
would take longer than it saves, so each image is then checked at its first use. An image that a scan for families has
seen is not decoded again. One error names all broken images.
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
"""The largest number of images that are decoded before training only to check them."""


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
    """Find the samples of sources that cannot be used. Then stop, or say what is left out.

    Args:
        broken: the treatment of broken samples, which takes in the ones that are found.
        sources: the sources of all images, with the training images first; a source may occur several times.
        scanned: the keys of the first source's images that a scan could not read; None if no scan looked at all of
            them.
        look: whether to remember the size and content of each image, for later use.
        remember: whether to remember them for those images that are looked at anyway.
        every: whether to look at all images, however many there are.
        without: the keys of images that are not looked at.
        trainer: the trainer of this process, whose first process reports and writes the list; None without one.

    Returns:
        The keys of the samples that are left out.

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
    """Return the broken images that the first process found, by key.

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
            expected="a folder that all nodes share, with files that do not change when a run begins",
            remedy="start again when all nodes see all files",
        )
    return dict(found)


def unreadable(
    source: SampleSource, rows: Sequence[int], *, look: bool = False, without: Collection[str] = ()
) -> list[tuple[str, Broken, DataError]]:
    """Return the images that cannot be decoded, with their keys and errors.

    Args:
        source: the source of the images.
        rows: the indices of the samples that are looked at.
        look: whether to remember the size and content of each image, for later use.
        without: the keys of images that are not looked at.
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
    """Look at every unknown image of a source, and keep the result for other processes and starts.

    Args:
        source: the source of the images; :func:`leave_out` reports its broken images.
        kept: the :class:`memtrain.data.kept_looks.KeptLooks` of the source.
        without: the keys of images that are not looked at.
    """
    source.kept_looks = kept
    unreadable(source, range(len(source)), look=True, without=without)
    kept.keep()


def refuse(source: SampleSource, wrong: list[tuple[Broken, DataError]], *, kept: str = "") -> None:
    """Raise one error for all broken images.

    Args:
        source: the source of the images.
        wrong: the broken images that :func:`unreadable` found.
        kept: the place of the list of all of them.

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
            remedy="repair or remove these samples and start again, or leave them out (--data.init_args.broken skip)",
        )


def broken_of(source: SampleSource, index: int, error: DataError) -> Broken:
    """Return the entry of the list for a sample whose image cannot be read."""
    where = source.stored_in(index)
    if where is not None and source.shared(index) > 1 and not where.exists():
        return Broken("", str(where), "the shard is gone", source.shared(index))
    why = reason(error.__cause__) if isinstance(error.__cause__, Exception) else error.problem
    return Broken(source.samples[index].key, "" if where is None else str(where), why)
