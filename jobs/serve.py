"""Answer pictures over HTTP with a published model.

python jobs/serve.py DIR/first                          # on this machine alone; prints its address
python jobs/serve.py model.onnx --host 0.0.0.0 --port 8000     # needs a secret in MNIST_RAY_TOKEN
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("serve")
