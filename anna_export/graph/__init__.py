"""The ONNX graph of an embedding model, built from its spec."""
