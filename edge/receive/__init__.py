"""Images in: over DICOM's C-STORE or STOW-RS, or from a watched folder."""
