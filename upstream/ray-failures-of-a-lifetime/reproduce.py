"""A trial's failures are counted over its whole life, however well it got on between them.

On machines that come and go a trial of some days is given up at last.
"""

import sys

from ray.tune.experiment import Trial

trial = Trial("reproducer", stub=True, max_failures=2)
for day in range(1, 5):
    trial.run_metadata.num_failures += 1  # as handle_error does when the day's machine goes
    if not trial.should_recover():
        sys.exit(f"FAULT: max_failures=2, one failure a day, results each day: over at day {day}")
    for hour in range(24):
        trial.update_last_result({"loss": 1 / (day + hour), "training_iteration": 24 * day + hour})
