"""Worlds: turn-level environments in text, our own and adapters to other people's."""
