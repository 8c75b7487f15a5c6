"""Weight diffs beside the obvious loop, the peer, and merely reading the files."""
