"""What a student is worth on prompts it never saw."""
