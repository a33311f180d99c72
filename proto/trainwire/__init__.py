"""The contract of trainwire: compiled messages and what they say about themselves."""
