"""Let a teacher answer prompts and score text."""
