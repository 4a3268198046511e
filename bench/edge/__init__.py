"""Measuring the appliance: receiving, and a long run under fire."""
