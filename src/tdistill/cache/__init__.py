"""Store the teacher's answers with their candidates."""
