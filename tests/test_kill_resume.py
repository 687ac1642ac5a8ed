"""SIGKILL to the whole process group, also during a save: the run still ends with the bits of an undisturbed one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_runs_end_with_the_same_bits(workers):
    command = [sys.executable, str(SOAK), "--trials", "1", "--workers", str(workers), "--num_kills", "3", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert summary["trials"] == summary["equal"] == 1
    assert summary["kills"] >= 1
