"""Read prompts, corpora and roll-out caches, and turn them into batches.

``records`` reads files and hub data sets · ``conversations`` turns a record into turns and answers · ``prompts`` renders them to token ids ·
``overlap`` finds prompts that stand in two sets · ``corpus`` packs plain text into windows · ``dataset`` reads a cache as examples ·
``mixed`` mixes the expert's responses with the student's own · ``collate`` pads examples into a batch.
"""
