"""Whether an installation is set up so that the bridge's promises hold: gather the facts once, then
judge them.
"""
