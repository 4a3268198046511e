"""Images in: over DICOM's C-STORE, or from a watched folder."""
