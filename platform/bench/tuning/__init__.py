"""Finds engine flags for a load: starts servers, measures them, keeps what helps, says why."""
