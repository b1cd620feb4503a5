"""Classify people's own pictures with a published model.

python jobs/predict.py model.onnx digit.png photo.jpg   # any size, dark on light or light on dark
python jobs/predict.py s3://bucket/runs/first digit.png

Prints one line a file: its name, the class and its probability.
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("predict")
