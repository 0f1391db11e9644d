"""Train students by any objective: the trainer, one whole run (``fit``), checkpoints, and checks of settings."""
