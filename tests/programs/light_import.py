"""The seconds of processor time that `import mnist_ray` takes, and what it imports, as JSON."""

import json
import sys
import time

start = time.process_time()
import mnist_ray

seconds = time.process_time() - start
assert mnist_ray.SettingsError.exit_code == 2
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
