"""Runs work in child processes."""
