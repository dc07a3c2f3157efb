"""TensorRT engines: an artifact's graph compiled for one GPU; TensorRT-RTX needs none for it."""
