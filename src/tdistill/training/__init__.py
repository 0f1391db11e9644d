"""The trainer, blind to algorithms, and a run from files to files."""
