"""Measure a student on prompts that it never saw."""
