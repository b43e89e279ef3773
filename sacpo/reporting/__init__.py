"""Output for people: plots, the HTML page, texts for the terminal, and the live table while a sweep runs.

Here are the pictures (`plots`, `curves`), the page (`page`, `page_data`, `tables`, `templates/`), the model card of an
export, a choice in words (`choice_text`), `--status` and `--dry-run` as text, and `live`. The package may import
`results` and everything below it, but neither ray nor torch; matplotlib, jinja2 and rich are imported when they are
used.
"""
