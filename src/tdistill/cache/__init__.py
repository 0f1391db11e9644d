"""Store responses with the teacher's candidates for every token.

``schema`` defines the columns, a response and the manifest · ``write`` writes shards and the manifest · ``read`` reads and verifies them ·
``check`` checks every value of a shard.
"""
