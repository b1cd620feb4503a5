"""Write a published model as a folder for the Hugging Face Hub or for Triton.

python jobs/export.py DIR/first --to huggingface --out for-the-hub
python jobs/export.py DIR/first --to triton --out models
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("export")
