"""What the appliance counts while it runs; what it can count from its database is read there when it is asked."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

REGISTRY = CollectorRegistry()

INSTANCES = Counter(
    "orthokernels_instances", "Instances offered, by what became of them.", ["outcome"], registry=REGISTRY
)
BYTES = Counter("orthokernels_received_bytes", "Bytes of the instances that were taken in.", registry=REGISTRY)
CONNECTIONS = Counter(
    "orthokernels_connections", "Connections, by what became of them.", ["outcome"], registry=REGISTRY
)
REQUESTS = Counter(
    "orthokernels_requests", "Requests to the DICOMweb port, by the answer's HTTP status.", ["status"],
    registry=REGISTRY,
)  # fmt: skip
TRIES = Counter(
    "orthokernels_delivery_tries", "Tries to deliver a study, by outcome.", ["destination", "outcome"],
    registry=REGISTRY,
)  # fmt: skip
CRASHES = Counter("orthokernels_worker_crashes", "Times that a study ended the worker's process.", registry=REGISTRY)
SECONDS = Histogram(
    "orthokernels_stage_seconds", "Seconds of each stage of a study.", ["stage"], registry=REGISTRY,
    buckets=(0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800),
)  # fmt: skip
