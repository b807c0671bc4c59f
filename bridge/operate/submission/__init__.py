"""Submitting jobs: from options or files to messages in the queue, and their results.

Everything is read and judged before anything is published, so that a mistake in the last line of a
file changes nothing.
"""
