"""The life of a study: which state may follow which. Everything else is a mistake of ours."""

from __future__ import annotations

from typing import Literal, get_args

State = Literal[
    "received",  # images are coming
    "settling",  # its association closed; waiting for quiet, or for headers that show a whole series
    "checked",  # complete and readable; waiting for the model
    "inferring",
    "writing",  # the model is done; objects are being made
    "sending",
    "sent",  # every destination accepted every object, or gets a later version's; or none was to get any
    "committed",  # and confirmed that it keeps them, where it was asked
    "rejected",  # not evaluated, with the reason
    "dead",  # put aside after repeated failure, with the reason; 'orthokernels edge retry' takes it up again
    "discarded",  # given up on by a person's decision, after it was dead
]
STATES: tuple[State, ...] = get_args(State)

FOLLOWS: dict[State, frozenset[State]] = {
    "received": frozenset({"settling", "rejected", "dead"}),
    "settling": frozenset({"received", "checked", "rejected", "dead"}),
    "checked": frozenset({"received", "inferring", "rejected", "dead"}),
    "inferring": frozenset({"checked", "writing", "rejected", "dead"}),
    "writing": frozenset({"checked", "sending", "rejected", "dead"}),
    "sending": frozenset({"sent", "dead"}),
    "sent": frozenset({"committed", "sending"}),  # back, where an archive lost what it had accepted
    "committed": frozenset(),
    "rejected": frozenset(),  # a retry of these makes a new version
    "dead": frozenset({"sending", "discarded"}),
    "discarded": frozenset(),
}

OPEN: tuple[State, ...] = ("received", "settling", "checked")  # a further image still joins
LEASED: tuple[State, ...] = ("inferring", "writing")  # a worker holds it
WAITING: tuple[State, ...] = (*OPEN, *LEASED)  # counts for the bounded queue
DELIVERED: tuple[State, ...] = ("sent", "committed")
