"""Forecasts of what comes in: several small models, and a contest that picks the best of them."""
