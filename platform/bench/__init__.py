"""Loads a server that speaks OpenAI's API, measures how it answers, and says what to set."""
