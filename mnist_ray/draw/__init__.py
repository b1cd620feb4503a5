"""A page to draw on: a model's picture.onnx, run in the browser.

The browser gives the answers of `predict`, by onnxruntime-web. Everything that runs lies gzipped in
one script, files.js: a page opened from disk can read nothing else. So one folder works from any
static host and without one. One thread needs no response headers. Pictures never leave the browser.
"""

from mnist_ray.draw.build import export
from mnist_ray.draw.server import serve

__all__ = ["export", "serve"]
