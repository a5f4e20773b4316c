"""What a person looks at: report.html and card.md, made from a run folder."""
