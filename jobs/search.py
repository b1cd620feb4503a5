"""Search for the best network, then fine-tune and publish it.

python jobs/search.py --dataset digits --trials 10 --max-epochs 8
python jobs/search.py --config my.yaml --trials 100          # a flag wins over the file
python jobs/search.py --storage DIR --name first --resume    # go on where it stopped
ray job submit --working-dir . -- python jobs/search.py --dataset mnist --data-dir DIR --storage s3://bucket/runs
"""

from mnist_ray.__main__ import job

if __name__ == "__main__":
    job("search")
