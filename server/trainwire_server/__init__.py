"""The trainwire server."""
