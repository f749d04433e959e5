"""What is written down: files replaced whole or not at all, and the metrics of a run."""
