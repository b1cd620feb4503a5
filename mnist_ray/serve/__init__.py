"""`mnist-ray serve`: a published model over HTTP, one picture a request. Needs the extra `serve`.

It runs picture.onnx, so its answers are those of `predict`.
"""
