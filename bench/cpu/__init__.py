"""The native CPU engine beside what else runs these networks on a CPU, in one run."""
