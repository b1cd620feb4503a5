"""The network as an ONNX file: written, verified, run, rebuilt, and given people's own pictures."""
