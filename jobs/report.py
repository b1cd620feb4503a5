"""Make a run's page again, or compare several runs on one.

python jobs/report.py DIR/first                                # writes DIR/first/report.html
python jobs/report.py s3://bucket/runs/first --png figures     # and the main figures as PNG files
python jobs/report.py DIR/first DIR/second --out both.html
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("report")
