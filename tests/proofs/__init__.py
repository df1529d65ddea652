"""Longer proofs: ``scripts/proof`` runs them all, and each writes what it measured under benchmarks/."""
