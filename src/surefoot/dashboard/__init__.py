"""The pages of `surefoot ui`: a server over run folders, and what it serves."""
