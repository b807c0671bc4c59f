"""Virtual machines for jobs: create, run a script by SSH, destroy. The consume path never imports
this.
"""
