"""Results out: C-STORE to the destinations, and the archive's word that it keeps them."""
