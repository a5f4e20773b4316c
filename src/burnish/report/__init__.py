"""What a person looks at: report.html and card.md, made from a run folder.

Kinds of figures a task may return (an unknown kind is left out of the page; a new one is a function of
`figures.FIGURES`):

    matrix       {"labels": [NAME], "values": [[COUNT]]}                     rows: true label, columns: predicted label
    calibration  {"points": [{"confidence": P, "accuracy": P, "rows": N}]}   one point per bin that has rows
    texts        {"rows": [{"prompt": TEXT, "temperature": T, "text": TEXT}]}
    table        {"columns": [NAME], "rows": [[TEXT or NUMBER]]}

Every figure has a "title", and a "split" if it belongs to one.
"""
