"""Turn prompts into responses with the teacher's candidates, and write them to a cache."""
