"""Draw tables, figures and pages. Nothing here knows what a run is.

- parts: a document, its sections, and the kinds of parts     - document: writes a document's files
- html, markdown, terminal: the three ways to render it       - templates/: the HTML and its style
- tables: a table and the format of its numbers               - svg, lines: figures, their colours and dashes
- text: escaping of texts that others wrote
"""
