"""The appliance beside the scanner. It does not run yet."""
