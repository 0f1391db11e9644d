"""Let a judge model compare two systems' answers.

- pairs: the answers to the same prompts, as questions     - journal: the verdicts on the disk
- client, protocol: requests to a chat endpoint            - score: from replies to a win rate
- judging: the whole command                               - cost, summary: its numbers as JSON and as a table
"""
