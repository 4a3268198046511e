"""Graphs and bundles for machines without PyTorch: ONNX and OpenVINO, quantised, and held against the reference.

``modules`` says what each graph computes, ``graphs`` which graphs weights make, and ``onnx_file`` writes one in fp32.
``write_forms`` adds the others: ``forms`` and ``quantise`` make them, ``examples`` and ``chain`` bring the studies that
calibrate them, ``two_bytes`` writes what reads vectors, ``judge`` says what a single graph loses. ``parity`` judges
whole forms by the ``gate``, ``admission`` takes back what does not hold it, ``known`` writes what is known of studies.
"""
