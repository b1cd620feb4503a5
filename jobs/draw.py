"""A web page to draw on: a published model runs in the browser and answers while you draw.

python jobs/draw.py DIR/first                  # serves the page on this machine alone
python jobs/draw.py s3://bucket/runs/first --port 8000
python jobs/draw.py model.onnx --export site   # the page as a folder, to be hosted anywhere

npm is needed the first time: it fetches onnxruntime-web into ~/.cache/mnist_ray.
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("draw")
