"""What the ops, the networks and the training steps take on a GPU, beside what they are compared with, in one run."""
