"""Definitions of ONNX operators, one file per family; importing this package fills the table."""
