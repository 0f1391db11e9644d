"""Handle the machine: errors, files, processes, progress, locks and stops. Nothing here knows models or recipes.

- errors: the errors that a user can act on        - stops: signals
- files, textfiles, parse, forms, hashes, paths: reading, writing and checking files
- disk, outputs, locks: full disks, and one writer at a time
- processes, progress: several processes, and bars on the terminal
- hints: type hints of other libraries             - secrets_guard: no secret is written
"""
