"""What clients of web APIs ask and are told, as values: bodies in, bodies out; no connection is known here."""
