"""What people look at: static pages and Markdown tables. Counts nothing."""
