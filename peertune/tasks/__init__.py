"""Tasks: data, prompt and grade."""
