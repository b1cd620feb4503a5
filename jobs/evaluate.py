"""Evaluate an ONNX model on a data set through onnxruntime.

python jobs/evaluate.py model.onnx --dataset mnist --data-dir DIR
python jobs/evaluate.py s3://bucket/runs/first   # a run's model, on its own data set
python jobs/evaluate.py model.onnx --part train
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("evaluate")
