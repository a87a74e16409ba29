"""Importers: PyTorch exported graphs and ONNX models become programs of `dlc.ir`."""
