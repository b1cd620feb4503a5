"""The second job: stages of fine-tuning, and the published ONNX file."""
