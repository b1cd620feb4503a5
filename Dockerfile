# mnist_ray on Ray's own image, the one that cluster.yaml and kuberay.yaml name.
#   docker build -t mnist_ray .
#   docker run --shm-size=2g -v "$HOME/mnist_ray:/runs" mnist_ray search --dataset digits --storage /runs
# With GPUs: --build-arg IMAGE=rayproject/ray:2.60.0-py311-gpu, and `docker run --gpus all`.
ARG IMAGE=rayproject/ray:2.60.0-py311-cpu
FROM ${IMAGE}

COPY --chown=ray pyproject.toml README.md LICENSE /home/ray/mnist_ray/
COPY --chown=ray mnist_ray /home/ray/mnist_ray/mnist_ray
# The image's own Ray stays: pip stops if pyproject.toml asks for another.
RUN pip install --no-cache-dir \
    "ray==$(python -c 'import ray; print(ray.__version__)')" "/home/ray/mnist_ray[report]"

ENTRYPOINT ["mnist-ray"]
CMD ["--help"]
