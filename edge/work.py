"""The worker: lets studies settle, runs the model on those that are complete, and hands over what was made."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from orthokernels.edge import metrics
from orthokernels.edge.config import Config
from orthokernels.edge.deliveries import Deliveries, Made
from orthokernels.edge.durable import make_folder, sync_folder, sync_tree
from orthokernels.edge.guard import Guarded, WorkerDiedError
from orthokernels.edge.store import Job, LostLeaseError, Store
from pydicom.uid import Comprehensive3DSRStorage

from orthokernels.errors import InputError

LOG = logging.getLogger("orthokernels.edge.work")
FOLDER = "results"

# Between looks for studies that time alone makes ready; the others ring.
_IDLE_SECONDS = 0.2

# After a model that could not be loaded, or a full disk; someone has to put it right.
_UNUSABLE_SECONDS = 30.0


class Worker(Guarded):
    """One worker process and the thread that feeds it."""

    def __init__(self, config: Config, store: Store, deliveries: Deliveries, name: str) -> None:
        super().__init__(config)
        self._config = config
        self._store = store
        self._deliveries = deliveries
        self._name = name
        self._stopping = False

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop."""
        while not stop.is_set():
            heard = self._store.ready.count
            try:
                self._guard.start()
                idle = not self.step()
                self.unusable = None
            except (InputError, WorkerDiedError) as error:
                self.unusable = f"the model can't be used: {error}"
                LOG.error("%s", self.unusable)
                stop.wait(_UNUSABLE_SECONDS)
                continue
            except Exception:  # a fault of ours must not end the thread: the next study may fare better
                LOG.exception("the worker stumbled")
                idle = True
            if idle:
                self._store.ready.wait(heard, _IDLE_SECONDS)
        self._guard.stop()

    def stop(self) -> None:
        """End the process, for no fault of the job that it works on."""
        self._stopping = True
        super().stop()

    def step(self) -> bool:
        """Do the most urgent thing; whether there was any.

        Raises:
            InputError: the model can't be loaded, or there is no room for what it makes. The job waits.
        """
        seconds = self._config.work.lease_seconds
        job = self._store.lease_to_settle(self._name, seconds, self._config.settle)
        if job is not None:
            self._guarded(job, self._settle)
            return True
        job = self._store.lease_to_infer(self._name, seconds)
        if job is not None:
            self._guarded(job, self._evaluate)
        return job is not None

    def _guarded(self, job: Job, work: Any) -> None:
        try:
            work(job)
        except LostLeaseError:
            LOG.info("%s: an image came, or the lease ran out; what was done is dropped", job.name)
        except WorkerDiedError as death:
            if self._stopping:
                self._store.release(job, self._name)
                return
            metrics.CRASHES.inc()
            LOG.error("%s: the worker process died: %s", job.name, death)
            self._store.failed(job, self._name, f"the worker process died: {death}", self._config.work.attempts)
        except InputError:  # the model or the disk, not the job
            self._store.release(job, self._name)
            raise

    def _settle(self, job: Job) -> None:
        verdict, because = job.examined, job.because or ""
        if removed := self._store.removed(job.study_uid):
            # What is left is not the study; the rest may still come again, so the time for images runs on.
            told = "1 earlier image was" if removed == 1 else f"{removed} earlier images were"
            remedy = "send the whole study again"
            if self._store.files(job.id):
                remedy += ", or retry this to do without"
            verdict, because = "unfit", f"{told} removed; {remedy}."
        elif verdict is None:
            with metrics.SECONDS.labels("examine").time():
                answer = self._ask(job, "examine", self._config.work.check_seconds)
            verdict, because = answer["verdict"], str(answer["because"])
        if self._store.settled(job, self._name, verdict, because, self._config.settle) == "rejected":
            self._reject(job, because)

    def _evaluate(self, job: Job) -> None:
        staged = self._staging(job)
        with metrics.SECONDS.labels("evaluate").time():
            answer = self._ask(
                job,
                "evaluate",
                self._config.work.study_seconds,
                out=str(staged),
                **self._circumstances(job),
            )
        if answer["rejected"]:
            self._reject(job, *answer["rejected"])
            return
        self._deliveries.owe(job, self._name, self._keep(job, staged, answer["made"]))

    def _reject(self, job: Job, *reasons: str) -> None:
        """No result; objects that say so go to the destinations in its stead."""
        staged = self._staging(job)
        answer = self._ask(
            job,
            "abstain",
            self._config.work.check_seconds,
            out=str(staged),
            reasons=reasons,
            **self._circumstances(job),
        )
        reason = " ".join(reasons)
        if answer["rejected"]:
            reason += f" (no report of this could be made: {' '.join(answer['rejected'])})"
        made = self._keep(job, staged, answer["made"])
        self._deliveries.owe(job, self._name, made, rejected=reason)

    def _ask(self, job: Job, what: str, seconds: float, **more: Any) -> dict[str, Any]:
        sources = [str(self._config.appliance.data / file) for file in self._store.files(job.id)]
        beaten = time.monotonic()

        def told(answer: dict[str, Any]) -> None:
            if answer.get("writing"):
                self._store.check_lease(job, self._name)
                self._store.move(job.id, "writing", self._name)
            else:
                self._beat(job, str(answer.get("progress", ""))[:80])

        def alive() -> None:
            nonlocal beaten
            if time.monotonic() - beaten > self._config.work.lease_seconds / 4:
                beaten = time.monotonic()
                self._beat(job)

        return self._guard.ask({"do": what, "sources": sources, **more}, seconds, told=told, alive=alive)

    def _beat(self, job: Job, progress: str | None = None) -> None:
        self._store.heartbeat(job, self._name, self._config.work.lease_seconds, progress)

    def _circumstances(self, job: Job) -> dict[str, Any]:
        """What objects say beside the result. It comes from rows alone, so that a repeat is identical."""
        reports = self._store.reports_before(job, (Comprehensive3DSRStorage,))
        return {
            "received": self._store.received_at(job.id),
            "supersedes": [str(self._config.appliance.data / file) for file in reports],
        }

    def _staging(self, job: Job) -> Path:
        staged = self._config.appliance.data / FOLDER / f".staging-{job.name}"
        shutil.rmtree(staged, ignore_errors=True)
        make_folder(staged)
        return staged

    def _keep(self, job: Job, staged: Path, made: list[dict[str, Any]]) -> list[Made]:
        """Put what was made in its place, durably. An earlier try of the same job has made the same, or was cut."""
        place = staged.with_name(job.name)
        for one in made:
            if Path(one["file"]).name != one["file"] or not (staged / one["file"]).is_file():
                raise WorkerDiedError("it named a file that it had not made")
        sync_tree(staged)
        shutil.rmtree(place, ignore_errors=True)
        staged.rename(place)
        sync_folder(place.parent)
        relative = place.relative_to(self._config.appliance.data)
        return [
            Made(one["sop_class"], one["sop_uid"], one["digest"], str(relative / one["file"]), one["form"])
            for one in made
        ]
