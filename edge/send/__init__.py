"""Results out: C-STORE or STOW-RS to the destinations, and the archive's word that it keeps them."""
