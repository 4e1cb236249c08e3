"""That the tests for a card still say what a run is told, on the machines that have none: one of them, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # it imports everything once more
def test_a_run_of_the_tests_for_a_card_goes_well_on_a_cpu() -> None:
    argv = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-q", "-n", "0", "-p", "no:cacheprovider"]
    argv += ["-k", "run_ends and bf16"]
    found = subprocess.run(
        argv,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "LORA_TEST_DEVICE": "cpu", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        encoding="utf-8",
    )
    assert found.returncode == 0, found.stdout + found.stderr
