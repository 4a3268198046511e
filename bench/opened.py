"""A bundle's graphs in the programs that anybody has: ``python -m orthokernels.bench.opened --bundle B --out DIR``.

Each file of each form goes through ONNX Runtime (or OpenVINO, for its own files), through OpenVINO's ``benchmark_app``,
and the smallest of each kind through Netron, as a picture. None of them knows this package. Latencies are those of the
moment; nothing is compared by them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer
from orthokernels.bench.record import circumstances, heading

from orthokernels.bundle.manifest import Graph
from orthokernels.bundle.verify import Bundle, verify
from orthokernels.errors import InputError, need
from orthokernels.runtime.sessions import onnx_runtime

_SECONDS = 600  # that one program may take
_PATIENCE = 60  # seconds that Netron gets for its layout


def open_all(bundle: Bundle, graphs: set[str]) -> Iterator[dict[str, Any]]:
    """A row for each form of each graph that is wanted: which programs opened it, and benchmark_app's median."""
    for name, graph in bundle.manifest.graphs.items():
        if name in graphs:
            for form, files in graph.forms.items():
                path = bundle.folder / files[0]
                yield {
                    "graph": name, "form": form, "file": files[0], "onnxruntime": _onnxruntime(path, graph),
                    "benchmark_app": _benchmark_app(path, graph),
                }  # fmt: skip


def _onnxruntime(path: Path, graph: Graph) -> str:
    """What plain ONNX Runtime says of a file: its outputs' shapes, or that it is not for it."""
    import numpy as np

    if path.suffix != ".onnx":
        return "not ONNX"
    session = onnx_runtime().InferenceSession(path, providers=["CPUExecutionProvider"])
    made = session.run(None, {name: np.zeros(_sides(sides), np.float32) for name, sides in graph.inputs.items()})
    return ", ".join(
        f"{output.name} {'x'.join(map(str, value.shape))}"
        for output, value in zip(session.get_outputs(), made, strict=True)
    )


def _benchmark_app(path: Path, graph: Graph) -> float:
    """Milliseconds of a call, as OpenVINO's own program measures it.

    Raises:
        InputError: it does not open the file.
    """
    program = shutil.which("benchmark_app", path=f"{Path(sys.executable).parent}") or shutil.which("benchmark_app")
    if program is None:
        raise InputError("benchmark_app is not there; it comes with OpenVINO: pip install 'orthokernels[openvino]'.")
    shapes = ",".join(f"{name}[{','.join(map(str, _sides(sides)))}]" for name, sides in graph.inputs.items())
    command = [program, "-m", str(path), "-d", "CPU", "-hint", "none", "-nireq", "1", "-niter", "3", "-shape", shapes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    median = re.search(r"Median:\s+([\d.]+) (ms|us)", done.stdout)
    if done.returncode or median is None:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        raise InputError(f"{path}: benchmark_app does not open it ({last}).")
    return float(median[1]) / (1000 if median[2] == "us" else 1)


def _sides(sides: list[int | str]) -> list[int]:
    return [1 if isinstance(side, str) else side for side in sides]


def picture(path: Path, png: Path, port: int = 8910) -> None:
    """Netron's view of a graph.

    Raises:
        InputError: there is no Chromium, or it made no picture.
    """
    need("pictures of graphs", "netron", "bench")
    import netron

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise InputError("no Chromium is there to show Netron's page; install one, or leave --pictures out.")
    where = ("127.0.0.1", port)
    netron.start(str(path), address=where, browse=False)
    frame = _Frame(("127.0.0.1", port + 1), port)
    threading.Thread(target=frame.serve_forever, daemon=True).start()
    try:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # nothing is reported to anybody
        command += [f"--screenshot={png}", f"http://127.0.0.1:{port + 1}/"]
        subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS)
    finally:
        frame.shutdown()
        netron.stop(where)
    if not png.is_file():
        raise InputError(f"{path}: Netron's page could not be shown.")


class _Frame(ThreadingHTTPServer):
    """A page around Netron's that answers its question about cookies, and is loaded only when that has had its time."""

    def __init__(self, address: tuple[str, int], inner: int) -> None:
        page = (
            "<script>document.cookie = 'consent=1;path=/'</script>"
            f"<iframe src='http://127.0.0.1:{inner}/' style='position:fixed;inset:0;width:100%;height:100%;border:0'>"
            "</iframe><img src='/later' style='display:none'>"
        )

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/later":
                    time.sleep(_PATIENCE)
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(address, Answer)


def table(facts: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [*heading(facts), "| graph | form | ONNX Runtime gives | benchmark_app, ms |", "|---|---|---|---|"]
    lines += [
        f"| {own['graph']} | {own['form']} | {own['onnxruntime']} | {own['benchmark_app']:.2f} |"
        for own in facts["rows"]
    ]
    return "\n".join([*lines, ""])


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of a bundle.")],
    out: Annotated[Path, typer.Option(help="Folder for opened.json, opened.md and the pictures.")],
    graphs: Annotated[str, typer.Option(help="Graphs, separated by commas; all by default.")] = "",
    pictures: Annotated[str, typer.Option(help="GRAPH:FORM to be shown by Netron, separated by commas.")] = "",
) -> None:
    """Open a bundle's files as any user would, and write down what was seen."""
    found = verify(bundle)
    wanted = set(graphs.split(",")) if graphs else set(found.manifest.graphs)
    if unknown := wanted - found.manifest.graphs.keys():
        raise typer.BadParameter(f"{bundle}: has no graph {', '.join(sorted(unknown))}.")
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        **circumstances(f"python -m orthokernels.bench.opened --graphs {graphs or 'all'}"),
        "weights": found.manifest.name,
        "rows": list(open_all(found, wanted)),
    }
    for own in pictures.split(",") if pictures else ():
        name, _, form = own.partition(":")
        path = bundle / found.manifest.graphs[name].forms[form][0]  # type: ignore[index]
        picture(path, out / f"{name}.{form}.png")
    (out / "opened.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "opened.md").write_text(table(facts))
    print(table(facts))


if __name__ == "__main__":
    typer.run(main)
