"""Tables as they are: text, gaps, dates, atoms and whole numbers as numbers for a flow, and back."""
