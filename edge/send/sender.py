"""One thread per destination, so that one that is down holds up no other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection

from orthokernels.edge import metrics
from orthokernels.edge.config import Config, DimseDestination, WebDestination
from orthokernels.edge.deliveries import Deliveries, Delivery, Made, NotDeliveredError
from orthokernels.edge.forms import choose
from orthokernels.edge.send.scu import ask_commitment, deliver
from orthokernels.edge.send.stow import authorization, post
from pydicom.uid import generate_uid

LOG = logging.getLogger("orthokernels.edge.send")

# Between looks for deliveries whose next try has come; new ones ring.
_IDLE_SECONDS = 0.2

# After a try that could not be noted, as when the database can't be written: all of it would be sent again at once.
_STUMBLED_SECONDS = 1.0
_STUMBLED_LONGEST_SECONDS = 60.0


class Sender:
    """Delivers to one destination.

    Raises:
        InputError: the destination's secret can't be read.
    """

    def __init__(self, config: Config, destination: DimseDestination | WebDestination, deliveries: Deliveries) -> None:
        if isinstance(destination, WebDestination):
            authorization(destination)
        self.name = destination.name
        self._title = config.appliance.ae_title
        self._destination = destination
        self._label_map = config.label_map(destination)
        self._data = config.appliance.data
        self._deliveries = deliveries

    def run(self, stop: threading.Event) -> None:
        """Deliver until told to stop."""
        stumbled = 0
        while not stop.is_set():
            heard = self._deliveries.owed.count
            try:
                idle = not self.step()
            except Exception as error:  # a fault of ours must not end the thread
                stumbled += 1
                self._tell(error, stumbled)
                stop.wait(min(_STUMBLED_SECONDS * 2.0 ** min(stumbled - 1, 30), _STUMBLED_LONGEST_SECONDS))
                continue
            if stumbled:
                LOG.warning("the sender to %s goes on", self._destination.name)
                stumbled = 0
            if idle:
                self._deliveries.owed.wait(heard, _IDLE_SECONDS)

    def _tell(self, error: Exception, times: int) -> None:
        """Of what may last, such as a disk that can't be written, once: the rest would fill the disk too."""
        name = self._destination.name
        if times == 1:
            LOG.exception("the sender to %s stumbled, and waits longer each time", name, exc_info=error)
        else:
            LOG.debug("the sender to %s stumbled again (%d): %s", name, times, error)

    def step(self) -> bool:
        """Try the most urgent delivery; whether there was any."""
        delivery = self._deliveries.due(self._destination.name)
        if delivery is None:
            return False
        try:
            with metrics.SECONDS.labels("deliver").time():
                self._deliver(delivery)
        except Exception as error:  # whatever goes wrong, it counts as a try, or the queue would stop here
            metrics.TRIES.labels(self._destination.name, "failed").inc()
            self._deliveries.refused(delivery, str(error)[:300])  # first: where it can't be noted, run tells, and once
            if not isinstance(error, NotDeliveredError):
                LOG.exception("an unexpected fault in delivering to %s", self._destination.name)
            LOG.warning("%s: try %d failed: %s", self._destination.name, delivery.tries + 1, error)
            return True
        metrics.TRIES.labels(self._destination.name, "delivered").inc()
        return True

    def _deliver(self, delivery: Delivery) -> None:
        def accepted(made: Made) -> None:
            self._deliveries.accepted(delivery, made)

        if self._label_map != "auto":  # then only what it gets is proposed to it
            delivery = self._decided(delivery)
        destination = self._destination
        if isinstance(destination, WebDestination):
            post(destination, self._data, delivery.open, accepted)
            self._deliveries.delivered(delivery)
            return
        deliver(
            self._title,
            destination,
            self._data,
            delivery.open,
            lambda classes: self._decided(delivery, classes).open,
            accepted,
        )
        if not destination.commitment:
            self._deliveries.delivered(delivery)
            return
        # The transaction is noted first: an archive may report before it answers the request.
        transaction = generate_uid(prefix=None)
        self._deliveries.delivered(delivery, transaction)
        ask_commitment(
            self._title,
            destination,
            self._deliveries.objects(delivery.job, delivery.id),
            transaction,
            self._deliveries.commitment_answered,
            lambda: self._deliveries.awaits(transaction),
        )

    def _decided(self, delivery: Delivery, accepted: Collection[str] = ()) -> Delivery:
        """The delivery with segmentations in one form: the one it had, or now chosen by what is ``accepted``."""
        if not delivery.undecided:
            return delivery
        before = self._deliveries.form_before(delivery)
        return self._deliveries.keep_to(delivery, choose(self._label_map, delivery.undecided, accepted, before))
