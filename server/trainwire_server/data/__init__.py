"""Data: stored tables, their profile, and the way from a table to labelled windows."""
