"""The memory of a process."""

from pathlib import Path


def pss(process: int) -> float:
    """Proportional set size in MB: what it shares with others counts in parts. 0 where the process
    has gone.
    """
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
