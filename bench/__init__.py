"""Measurements: what each part costs, beside what it is compared with, in one run."""
