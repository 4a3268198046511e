"""Training: records of a data set, a cache of prepared volumes, one loop with checkpoints, and its tasks."""
