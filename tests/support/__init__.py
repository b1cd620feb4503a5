"""What the tests share: processes, servers, runs, and the folders that they use."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "programs"  # what the tests start, or import as a module of a person's
