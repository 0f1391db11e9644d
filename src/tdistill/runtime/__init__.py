"""Handle errors, files, processes, progress, locks, stops and disks."""
