"""What every benchmark shares: a report with goals, a chart, children that answer questions."""
