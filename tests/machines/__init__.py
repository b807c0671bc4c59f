"""Machines: created, used and destroyed for real."""
