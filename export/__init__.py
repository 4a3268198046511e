"""Graphs and bundles for machines without PyTorch: ONNX and OpenVINO, quantised, and held against the reference.

``modules`` says what each graph computes and ``graphs`` which graphs weights make; ``onnx_file`` writes one.
"""
