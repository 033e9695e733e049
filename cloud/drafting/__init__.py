"""Guesses beyond an answer, made where the late layers are: draft heads and what a session said."""
