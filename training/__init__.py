"""How mini was made: data, teachers, judges, training, export. Not part of the product; see training/README.md."""
