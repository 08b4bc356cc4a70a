"""Readers of foreign checkpoints: each turns a file into a float ONNX graph or a torch module, and runs none of it."""
