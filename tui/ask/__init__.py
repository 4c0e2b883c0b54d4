"""One question and its answer, for `overstory ask`: from the words typed to what is printed."""
