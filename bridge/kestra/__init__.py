"""Kestra's API."""
