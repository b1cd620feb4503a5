"""Upload a published model to the Hugging Face Hub.

python jobs/push.py DIR/first me/digits
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("push")
