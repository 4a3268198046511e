"""A bundle at work: OpenVINO, ONNX Runtime or the native engine behind one ``StudyModel``, without PyTorch."""
