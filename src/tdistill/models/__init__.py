"""Find, load, check and change language models.

- find: the files of a model          - fingerprint: one hash for each part that shapes its answers
- load: weights                       - weights, gguf: files of weights, checked before they are loaded
- tokenizer, control, templates: text to token ids, and the tokens that end a response
- vocabulary: how many rows of a head are tokens
- layout, forward: padding, positions, and the shift between tokens and steps
- probe: the properties that roll-outs and training need
- prune, lora, value_head, student: the student and its parts
- precision: float32 under autocast
"""
