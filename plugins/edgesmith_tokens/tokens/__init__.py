"""What all methods of the family need: sizes of tokens, other numbers of tokens, tokens as there were before."""
