"""Output for people: plots, the HTML page, texts for the terminal, and the live table while a sweep runs.

Here are the PNG (`plots`), the interactive figure (`interactive`), the page (`page`, `tables`, `templates/`), the model
card of an export, a choice in words (`choice_text`), `--status` and `--dry-run` as text, and `live`. The package may
import `results` and everything below it, but neither ray nor torch; matplotlib, plotly, jinja2 and rich are imported
when they are used.
"""
