"""The engine's side of :mod:`memtrain.monitoring.loss_route`, which turns losses from the host into turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from memtrain.errors import DataError
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.flagging import Flagging
from memtrain.monitoring.host import Host
from memtrain.monitoring.loss_route import Handover, rows_of
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.online_watch import OnlineWatch
from memtrain.monitoring.sample_losses import Criterion
from memtrain.monitoring.turn import Turn


class Intake:
    """Takes losses over, forward by forward.

    Args:
        host: the host of the run.
        probe: the probe on the denoiser.
        flagging: the flagging of the run.
        mitigations: the mitigations of the run.
        forward_done: function that gets the observation of a forward when the first of its losses is handed over.
        online: object that shows the rows to a growing index of families; None without such an index.
        replay: function that runs the forward under the base model; its result is None for a batch without comparison.
    """

    def __init__(
        self,
        host: Host,
        *,
        probe: DenoiserProbe,
        flagging: Flagging,
        mitigations: Sequence[Mitigation],
        forward_done: Callable[[Observation], None],
        replay: Callable[[Observation], Observation | None],
        online: OnlineWatch | None = None,
    ) -> None:
        self.host, self.probe, self.flagging, self.mitigations = host, probe, flagging, mitigations
        self.forward_done, self.replay, self.online = forward_done, replay, online
        self.handover: Handover | None = None

    def take(
        self,
        prediction: Tensor,
        target: Tensor,
        *,
        begun: Turn | None,
        number: int,
        keys: Sequence[str] | None,
        weights: Tensor | None,
        criterion: Criterion,
        caption_dropped: Sequence[bool],
    ) -> Tensor:
        """Return the loss of the next rows of the forward, `()` with a graph.

        Args:
            prediction: `(b, ...)` prediction.
            target: `(b, ...)` target.
            begun: the turn, if the batch was known before its forward. Penalties are added elsewhere then.
            number: the number of the batch.
            keys: the keys of the samples; None if the batch named them.
            weights: weights of samples or of elements.
            criterion: a name, or a function of prediction and target.
            caption_dropped: b values, true if the empty caption replaced the sample's own.

        Raises:
            DataError: if a row has no key, or if there are more rows than in the forward.
            ProbeError: if there was no forward, or if the prediction does not belong to it.
        """
        if self.handover is None:
            observation = self.probe.seen()
            self.forward_done(observation)
            assert self.probe.output is not None
            self.handover = Handover(observation, self.probe.output, self.replay(observation))
        rows = self.handover.next_rows(prediction)
        names = _named(begun, keys, rows, len(prediction))
        part = rows_of(self.handover.observation, rows, names)
        turn = Turn(
            number=number,
            step=self.host.step if begun is None else begun.step,
            flags=self.flagging.flags(names),
            observation=part,
            mitigations=self.mitigations,
            loss_weight=lambda timesteps: None,
            heldout=self.flagging.heldout_keys.mask(names),
            twins=None if self.online is None else self.online.take(part, prediction, target, rows=rows),
        )
        if begun is None or len(caption_dropped):
            part.caption_dropped = _dropped(caption_dropped, len(prediction))
        penalized = begun is None and bool(turn.penalizing)
        if penalized and any(mitigation.needs().base_profile for mitigation in turn.penalizing):
            self.flagging.add_reference(part)
        with self.host.differentiating():
            return self.handover.add(
                prediction, target, turn=turn, weights=weights, criterion=criterion, penalized=penalized
            )

    def finished(self, begun: Turn | None) -> Turn | None:
        """Return the turn of the whole batch when every row has been handed over, or else None."""
        if self.handover is None or not self.handover.complete:
            return None
        turn = self.handover.finished()
        if begun is not None:
            turn.flags, turn.scaled = begun.flags, begun.scaled
        self.flagging.keep(self.handover)
        return turn

    def require_complete(self) -> None:
        """Refuse a batch with missing rows.

        Raises:
            DataError: if rows are missing.
        """
        if self.handover is not None and not self.handover.complete:
            left, count = self.handover.count - self.handover.rows, self.handover.count
            raise DataError(
                f"The loss of {left} of {count} rows of the denoiser's output was not handed over",
                expected="a loss for every row",
                remedy="call loss(...) for the other rows too, with weights of 0 for rows that you do not train on",
            )


def _dropped(given: Sequence[bool], count: int) -> list[bool]:
    """Return `count` values, true for rows with a dropped caption."""
    if len(given) not in (0, count):
        raise DataError(
            f"The loss has {count} rows, and caption_dropped {len(given)}",
            expected="one boolean for each row, in the order of the prediction",
            remedy="pass B booleans, or remove caption_dropped if no caption is dropped",
        )
    return [bool(flag) for flag in given]


def _named(begun: Turn | None, keys: Sequence[str] | None, rows: slice, count: int) -> list[str]:
    """Return the keys of these rows, from the host or from the batch that it began."""
    known = None if begun is None else list(begun.observation.keys)[rows]
    names = known if keys is None else list(keys)
    if names is None or len(names) != count or (known is not None and names != known):
        found = "no keys" if names is None else f"{len(names)} keys"
        raise DataError(
            f"The loss has {count} rows and {found}"
            + (" that differ from the keys of the batch" if known is not None and names != known else ""),
            expected="one key for each row, in the order of the prediction",
            remedy="pass keys=... with the names of the samples in this batch",
        )
    return names
