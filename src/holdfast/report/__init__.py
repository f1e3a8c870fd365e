"""The page about a campaign: tables, figures, HTML, Markdown and JSON, all from records. No torch here."""
