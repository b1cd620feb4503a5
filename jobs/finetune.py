"""Fine-tune a run's best checkpoint in stages and publish it as ONNX.

python jobs/finetune.py --run DIR/first
python jobs/finetune.py --run s3://bucket/runs/first --stages my-stages.yaml
python jobs/finetune.py --run DIR/first --onnx model.onnx    # start from an ONNX file of ours
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("finetune")
