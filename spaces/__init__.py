"""The Space: `app.py` and `studio/` are its page; `deploy` brings them to Hugging Face and is not part of it.

This file is here for `python -m spaces.deploy`: without it a package that is installed by this name, which
Hugging Face's own for ZeroGPU is, would be taken for this folder.
"""
