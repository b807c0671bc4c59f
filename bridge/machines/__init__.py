"""Virtual machines for jobs: create one, run a script on it by SSH, destroy it.

The consume path never imports this package. README.md describes it.
"""
