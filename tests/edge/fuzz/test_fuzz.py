"""Inputs that once failed, and three thousand mutations of good ones: each is taken or refused, and no more happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from orthokernels.bench.edge.fuzz import TARGETS
from orthokernels.bench.edge.fuzz.mutate import mutated
from orthokernels.bench.edge.fuzz.run import corpus

CORPUS = Path(__file__).with_name("corpus")
COUNTS = {"files": 600, "pdus": 300, "messages": 500, "multiparts": 500, "configurations": 1250}


@pytest.mark.parametrize("kind", TARGETS)
def test_damaged_input_is_taken_or_refused_and_nothing_else_happens(kind, tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "orthokernels.bench.edge.fuzz", "--target", kind, "--count", str(COUNTS[kind]),
            "--again", str(CORPUS), "--findings", str(tmp_path),
        ],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", TARGETS)
def test_every_kind_has_seeds_that_are_taken(kind, tmp_path):
    with TARGETS[kind](tmp_path) as target:
        assert "taken" in {target.take(seed) for seed in target.seeds}
        target.check()


def test_input_of_a_run_is_a_function_of_seed_and_index():
    seeds = [bytes(range(200)), b"another seed"]
    first = [mutated(seeds, [], 3, index) for index in range(50)]
    assert first == [mutated(seeds, [], 3, index) for index in range(50)]
    assert len(set(first)) > 40
    assert first != [mutated(seeds, [], 4, index) for index in range(50)]


def test_finding_is_found_and_kept(tmp_path, monkeypatch):
    """A target with a fault in it: what the fuzzer is for."""
    from orthokernels.bench.edge.fuzz import __main__ as command

    told = [{"finding": 3, "why": "ValueError: no"}, {"done": {"refused": 4, "finding": 1}}]
    monkeypatch.setattr(command, "_process", lambda *asked: (told, None))
    row = command.fuzzed("configurations", 0, 5, None, tmp_path / "findings")
    assert row["findings"] == [{"index": 3, "why": "ValueError: no"}]
    assert (tmp_path / "findings" / "configurations-0-3.bin").is_file()


def test_input_that_ends_the_process_is_a_finding_and_the_run_goes_on(tmp_path, monkeypatch):
    import struct

    from orthokernels.bench.edge.fuzz import __main__ as command

    asked = []

    def dies_at_two(kind, seed, first, count, again, marker):
        asked.append((first, count))
        if first > 2:
            return [{"done": {"refused": count}}], None
        marker.write_bytes(struct.pack("<q", 2))
        return [], "ended the process with status -11"

    monkeypatch.setattr(command, "_process", dies_at_two)
    row = command.fuzzed("configurations", 0, 5, None, tmp_path / "findings")
    assert asked == [(0, 5), (3, 2)]
    assert row["findings"] == [{"index": 2, "why": "ended the process with status -11"}]


def test_corpus_holds_inputs_of_kinds_that_are_known():
    assert {folder.name for folder in CORPUS.iterdir()} <= set(TARGETS)
    assert all(corpus(CORPUS, kind) for kind in ("files", "messages", "multiparts"))
