"""Configuration files, which people edit by hand."""

from __future__ import annotations

from pathlib import Path

from orthokernels.bench.edge.fuzz.target import Target
from orthokernels.edge.config import TEMPLATE, load

from orthokernels.errors import InputError

_WHOLE = b"""
[appliance]
ae_title = "KNEE BOX"
data = "/srv/data"
[receive]
port = 104
peers = [{ ae_title = "MRI1", hosts = ["192.0.2.10/32", "2001:db8::/48"], priority = 3 }]
[receive.limits]
pdu_bytes = 65536
idle_seconds = 10.5
[watch]
folder = "/srv/incoming"
[results]
planes = ["sagittal"]
[work]
bundle = "/srv/bundle"
command = ["python3", "-m", "orthokernels.edge.evaluate"]
[[destinations]]
name = "archive"
ae_title = "PACS"
host = "192.0.2.20"
port = 11112
commitment = true
"""


class Configurations(Target):
    """In order, or sentences that say what is not."""

    fragments = (
        b"[[receive.peers]]", b"[receive]", b"= -1", b"= 1e999", b"= inf", b"= nan", b'"""', b"= [[[[[[[[", b"\\ud800",
        b"= {a={a={a=", b'hosts = ["0.0.0.0/0", "::/0", "1.2.3.4/33"]', b"9999999999999999999", b"1979-05-27T07:32:00",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self._path = folder / "appliance.toml"
        self.seeds = [TEMPLATE.read_bytes(), _WHOLE]

    def take(self, content: bytes) -> str:
        self._path.write_bytes(content)
        try:
            load(self._path)
        except InputError as refusal:
            if str(self._path) not in str(refusal):
                raise AssertionError("the sentence does not say which file") from refusal
            return "refused"
        return "taken"
