"""What importing costs, and what must never be imported: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(f"{{name}} is not installed")
sys.meta_path.insert(0, Refuse())
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "orthokernels", "orthokernels.tasks", "orthokernels.result", "orthokernels.report", "orthokernels.cli",
        "orthokernels.writing", "orthokernels.pipeline", "orthokernels.bundle.verify", "orthokernels.runtime.model",
        "orthokernels.runtime.tuning", "orthokernels.data.study", "orthokernels.data.prepare",
        "orthokernels.data.restore", "orthokernels.data.phantom", "orthokernels.edge",
        "orthokernels.edge.commands", "orthokernels.edge.service", "orthokernels.edge.web",
        "orthokernels.edge.checks", "orthokernels.edge.objects",
    ],
)  # fmt: skip
def test_works_where_pytorch_is_not_installed(module):
    python(_WITHOUT.format(names={"torch", "huggingface_hub"}) + f"import {module}")


def test_package_import_loads_nothing_heavy():
    loaded = python("import sys, orthokernels; print(' '.join(sys.modules))").split()
    assert not {"torch", "numba", "matplotlib", "nibabel", "pydicom", "triton"} & set(loaded)


def test_a_study_is_run_and_reported_without_plots_and_compilers():
    modules = "orthokernels.pipeline, orthokernels.writing, orthokernels.runtime.model, orthokernels.edge.objects"
    loaded = python(f"import sys, {modules}; print(' '.join(sys.modules))").split()
    assert not {"torch", "numba", "matplotlib", "onnx", "openvino", "onnxruntime"} & set(loaded)


def test_nothing_under_orthokernels_imports_the_rooms_above():
    code = (
        "import sys, orthokernels.pipeline, orthokernels.report, orthokernels.writing\n"
        "above = [f'orthokernels.{room}' for room in ('export', 'edge', 'bench')]\n"
        "print([m for m in sys.modules if m.startswith(tuple(above))])"
    )
    assert python(code).strip() == "[]"


@pytest.mark.parametrize("more", [[], ["--engine", "native", "--weights", "random:0"]])
def test_run_without_pytorch_says_which_extra_to_install(tmp_path, more):
    code = _WITHOUT.format(names={"torch"}) + (
        "import importlib.util as u\nfound = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'torch' else found(name, package)\n"
        f"sys.argv = ['orthokernels', 'run', {str(tmp_path)!r}, '--out', {str(tmp_path / 'out')!r}, *{more!r}]\n"
        "from orthokernels.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'orthokernels[torch]'" in done.stderr


def test_info_tells_why_a_backend_is_unavailable():
    import json

    facts = json.loads(
        python("import sys; sys.argv = ['orthokernels', 'info', '--json']\nfrom orthokernels.cli import main\nmain()")
    )
    backends = {backend["name"]: backend for backend in facts["backends"]}
    assert set(backends) == {"torch", "cpu", "triton", "cuda"}
    assert backends["cpu"]["available"], backends["cpu"]["reason"]
    for backend in backends.values():
        assert backend["available"] == (backend["reason"] is None)
    assert facts["processor"]["cores"] >= 1
