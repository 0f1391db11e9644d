"""Let a teacher answer prompts and score text.

``rollouts`` turns a prompt set into a cache · ``transformers`` answers and scores with a model of transformers · ``sampling`` draws tokens
with noise that belongs to the token · ``checks`` refuses what a model can't read.
"""
