"""The experiments behind the published tables: defined as data, trained, collected and written as JSON and Markdown."""
