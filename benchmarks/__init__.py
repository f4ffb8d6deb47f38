"""Speed, measured through the real flow and beside the peers."""
