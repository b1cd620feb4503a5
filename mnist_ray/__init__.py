"""Search, train and ship the best network for MNIST-like images, hosted by Ray Tune."""

__version__ = "0.1.0"
