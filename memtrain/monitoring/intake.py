"""Where losses that are handed over become turns: the engine's side of :mod:`memtrain.monitoring.loss_route`."""

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
        host: the surroundings of the run.
        probe: on the denoiser.
        flagging: of the run.
        mitigations: of the run.
        forward_done: called with the observation of a forward when the first of its losses is handed over.
        online: shows an index of families what the rows hold; None where none grows.
        replay: the forward under the base model, None for a batch that is not compared.
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
        """The loss of the next rows of the forward, `()` with a graph.

        Args:
            prediction: `(b, ...)`.
            target: `(b, ...)`.
            begun: the turn, where the batch was known before its forward; penalties are added elsewhere then.
            number: of the batch.
            keys: of the samples; None where the batch named them.
            weights: of samples or of elements.
            criterion: a name, or a function of prediction and target.
            caption_dropped: b, true where the empty caption stood in place of the sample's own.

        Raises:
            DataError: if there is not a key for each row, or more rows than the forward had.
            ProbeError: if there was no forward, or the prediction is not its.
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
        """The turn of the whole batch once every row was handed over, else None."""
        if self.handover is None or not self.handover.complete:
            return None
        turn = self.handover.finished()
        if begun is not None:
            turn.flags, turn.scaled = begun.flags, begun.scaled
        self.flagging.keep(self.handover)
        return turn

    def require_complete(self) -> None:
        """Refuse a batch of which rows are left.

        Raises:
            DataError: if they are.
        """
        if self.handover is not None and not self.handover.complete:
            left, count = self.handover.count - self.handover.rows, self.handover.count
            raise DataError(
                f"The loss of {left} of {count} rows of the denoiser's output was not handed over",
                expected="a loss for every row",
                remedy="call loss(...) for the other rows too, with weights of 0 where they shall teach nothing",
            )


def _dropped(given: Sequence[bool], count: int) -> list[bool]:
    """True for each of `count` rows whose caption was dropped."""
    if len(given) not in (0, count):
        raise DataError(
            f"The loss has {count} rows, and caption_dropped {len(given)}",
            expected="one for each row, in the order of the prediction's",
            remedy="pass B booleans, or leave caption_dropped out where no caption is dropped",
        )
    return [bool(flag) for flag in given]


def _named(begun: Turn | None, keys: Sequence[str] | None, rows: slice, count: int) -> list[str]:
    """The keys of these rows, from the host or from the batch that it began."""
    known = None if begun is None else list(begun.observation.keys)[rows]
    names = known if keys is None else list(keys)
    if names is None or len(names) != count or (known is not None and names != known):
        found = "no keys" if names is None else f"{len(names)} keys"
        raise DataError(
            f"The loss has {count} rows and {found}"
            + (" that are not those of the batch" if known is not None and names != known else ""),
            expected="one key for each row, in the order of the prediction's",
            remedy="pass keys=..., names of the samples in this batch",
        )
    return names
