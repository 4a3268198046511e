"""``edge doctor``: looks at everything that the appliance stands on, then sends a study through the whole loop."""
