"""Ten thousand associations, one after the other: does the receiver's memory grow?

    python -m orthokernels.bench.edge.associations [--count 10000] [--out FOLDER]

Each association is opened, asked for an echo and released; every tenth brings an image instead (always the same one,
which is known after the first time), every twentieth is rejected for its AE title, and every twentieth is dropped
without a word. The receiver is a process of its own; its resident memory is read from /proc, and a line is put through
what comes after the first thousand, by which time caches are full and the allocator has its arenas. The check
fails where growth beyond ``FLAT_BYTES`` is shown; where the interval holds it, neither that nor its absence is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from orthokernels.bench.edge.fuzz.files import enhanced_data_set
from orthokernels.bench.edge.wire import Context, Peer, echo_request, free_port, release_request
from orthokernels.bench.record import circumstances, heading
from orthokernels.edge.config import Config
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

WARM_UP = 1000

# Below this many bytes an association, a year of one every minute costs less than 60 MB, which a restart for an update
# gives back; what pynetdicom keeps of a single leaked association is three orders more.
FLAT_BYTES = 100

_SAMPLE_EVERY = 20
_CLASS, _UID = str(EnhancedMRImageStorage), "1.2.3.1.1"
_CONTEXTS: tuple[Context, ...] = (
    (1, _CLASS, (str(ExplicitVRLittleEndian),)),
    (3, "1.2.840.10008.1.1", (str(ExplicitVRLittleEndian),)),
)

_RECEIVE = """
import logging, sys
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.receive.intake import Intake
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.scp import Receiver
from orthokernels.edge.service import quiet_libraries
from orthokernels.edge.store import Store
config = Config.model_validate_json(sys.stdin.readline())
quiet_libraries()
logging.disable()
store = Store(Database(config.appliance.data))
receiver = Receiver(config, Intake(config, store), OpenStudies(store), lambda *_: False)
receiver.start()
print("listening", flush=True)
sys.stdin.read()
"""


def main(
    count: Annotated[int, typer.Option(min=2 * WARM_UP)] = 10000,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for associations.json and .md.")] = None,
) -> None:
    """Measure, and print the slope. Exit code 1: memory grows."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        samples, threads, files = measure(Path(folder), count)
    slope, margin = slope_of(np.array(samples, float))
    facts = {
        **circumstances(f"python -m orthokernels.bench.edge.associations --count {count}"),
        "associations": count,
        "after": WARM_UP,
        "bytes_an_association": round(slope, 1),
        "margin_95": round(margin, 1),
        "held_to_bytes": FLAT_BYTES,
        "threads_left": threads,
        "files_left": files,
        "seconds": round(time.monotonic() - started),
        "samples": samples,
    }
    print(table(facts))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "associations.json").write_text(json.dumps(facts) + "\n")
        (out / "associations.md").write_text(table(facts))
    if slope - margin > FLAT_BYTES:
        raise typer.Exit(1)


def measure(folder: Path, count: int) -> tuple[list[tuple[int, int]], int, int]:
    """Resident bytes by number of associations; and threads and open files beyond those before the first."""
    config = Config.model_validate(
        {
            "appliance": {"data": folder / "data"},
            "receive": {"port": free_port(), "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
            "disk": {"keep_free_bytes": 0, "refuse_above": 1.0},
        }
    )
    command = [sys.executable, "-c", _RECEIVE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdin is not None
        assert receiver.stdout is not None
        try:
            receiver.stdin.write(config.model_dump_json() + "\n")
            receiver.stdin.flush()
            if receiver.stdout.readline() != "listening\n":
                raise RuntimeError("the receiver did not start")
            image = enhanced_data_set("sagittal", "1.2.3", "1.2.3.1", _UID, "sagittal")
            process = Path("/proc", str(receiver.pid))
            before = len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))
            samples = []
            for number in range(1, count + 1):
                associate(config.receive.port, number, image)
                if number % _SAMPLE_EVERY == 0:
                    samples.append((number, _resident(process)))
            time.sleep(2.0)
            after = len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))
        finally:
            receiver.kill()
    return samples, after[0] - before[0], after[1] - before[1]


def associate(port: int, number: int, image: bytes) -> None:
    """One association of the kind that is this number's turn.

    Raises:
        RuntimeError: it was not answered as it should be.
    """
    kind = number % 20
    with Peer(port) as peer:
        if kind == 7:
            return
        accepted = peer.associate(*_CONTEXTS, **({"calling": "STRANGER"} if kind == 13 else {}))
        if (accepted is None) != (kind == 13):
            raise RuntimeError(f"association {number} was answered {accepted}")
        if accepted is None:
            return
        if kind in (0, 10):
            status = peer.store(image, _CLASS, _UID)
            if status != 0:
                raise RuntimeError(f"the image of association {number} was answered {status}")
        else:
            peer.send(echo_request(3))
            if peer.receive() is None:
                raise RuntimeError(f"the echo of association {number} was not answered")
        peer.send(release_request())
        peer.receive()


def _resident(process: Path) -> int:
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope_of(samples: np.ndarray) -> tuple[float, float]:
    """Bytes an association after the warm-up, by least squares, and half the width of the 95 % interval.

    Neighbouring samples are not independent of each other, so the interval comes from the slopes of ten blocks of the
    run (their standard error by Student's t with 9 degrees of freedom).

    Args:
        samples: associations and bytes, [samples, 2].
    """
    late = samples[samples[:, 0] > WARM_UP]
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    blocks = [np.polyfit(block[:, 0], block[:, 1], 1)[0] for block in np.array_split(late, 10) if len(block) > 1]
    return slope, 2.262 * float(np.std(blocks, ddof=1)) / len(blocks) ** 0.5


def _shown(facts: dict[str, Any]) -> str:
    slope, margin, most = facts["bytes_an_association"], facts["margin_95"], facts["held_to_bytes"]
    if slope - margin > most:
        return f"more than {most}, which counts as growth"
    return f"not shown to exceed {most}" if slope + margin > most else f"less than {most}, which counts as flat"


def table(facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    megabytes = [(number, resident / 1e6) for number, resident in facts["samples"]]
    shown = [megabytes[n] for n in np.linspace(0, len(megabytes) - 1, 11).round().astype(int)]
    left = f"{facts['threads_left']} threads and {facts['files_left']} open files are left"
    lines = [
        *heading(facts),
        f"{facts['associations']} associations in {facts['seconds']} s. After the first {facts['after']}, resident "
        f"memory changes by {facts['bytes_an_association']:g} ± {facts['margin_95']:g} bytes an association (95 %); "
        f"{_shown(facts)}. {left} beyond those before the first.",
        "",
        "| associations | resident memory, MB |",
        "|---|---|",
        *(f"| {number} | {resident:.1f} |" for number, resident in shown),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
