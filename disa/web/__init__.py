"""The page of `disa web`: what it asks of a pipeline, how it is drawn, and what it shows.

`page` alone needs gradio.
"""
