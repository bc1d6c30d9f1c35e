"""What the Space shows, in two layers: `page` and `tabs` are gradio's, everything else runs without it.

`engine.Engine` is what a tab's callbacks call. A new tab is one file in `tabs/` and one line in `page.TABS`.
"""
