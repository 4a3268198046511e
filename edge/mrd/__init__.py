"""Inline use: images from a scanner over MRD (ISMRM raw data) on TCP, labels back on the same connection."""
