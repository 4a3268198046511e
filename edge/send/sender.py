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
        while not stop.is_set():
            heard = self._deliveries.owed.count
            try:
                idle = not self.step()
            except Exception:  # a fault of ours must not end the thread
                LOG.exception("the sender to %s stumbled", self._destination.name)
                idle = True
            if idle:
                self._deliveries.owed.wait(heard, _IDLE_SECONDS)

    def step(self) -> bool:
        """Try the most urgent delivery; whether there was any."""
        delivery = self._deliveries.due(self._destination.name)
        if delivery is None:
            return False
        try:
            with metrics.SECONDS.labels("deliver").time():
                self._deliver(delivery)
        except Exception as error:  # whatever goes wrong, it counts as a try, or the queue would stop here
            if not isinstance(error, NotDeliveredError):
                LOG.exception("an unexpected fault in delivering to %s", self._destination.name)
            metrics.TRIES.labels(self._destination.name, "failed").inc()
            LOG.warning("%s: try %d failed: %s", self._destination.name, delivery.tries + 1, error)
            self._deliveries.refused(delivery, str(error)[:300])
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
