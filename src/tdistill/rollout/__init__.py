"""Prompts → responses with the teacher's candidates → cache."""
