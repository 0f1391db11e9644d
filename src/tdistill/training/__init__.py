"""Train students without knowledge of the algorithms, and run from files to files."""
