"""What papers claim, measured through the public API. One module a paper."""
