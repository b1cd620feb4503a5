"""Make a run's page again, or compare several runs on one.

python jobs/report.py DIR/first                                # writes DIR/first/report.html
python jobs/report.py s3://bucket/runs/first --png figures     # and the main figures as PNG files
python jobs/report.py DIR/first DIR/second --out both.html
"""

from dataclasses import dataclass

from tyro.conf import Positional

from mnist_ray.settings import main


@dataclass(frozen=True)
class ReportSettings:
    """Make a run's report.html again, or one page that compares several runs."""

    runs: Positional[tuple[str, ...]]
    """The runs' directories: folders or s3://bucket/path/name."""
    out: str | None = None
    """Write the page to this file (default: report.html, in the run's directory or, for several runs, here)."""
    png: str | None = None
    """Draw the main figures into this folder as PNG files too."""
    data_dir: str | None = None
    """torchvision's root, for the test images (default: what the search was told)."""


def run(settings: ReportSettings) -> int:
    from mnist_ray.report import make

    return make(settings.runs, settings.out, settings.png, settings.data_dir)


if __name__ == "__main__":
    main(ReportSettings, run)
