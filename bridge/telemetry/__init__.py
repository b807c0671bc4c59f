"""Logs, metrics, health and traces."""
