"""Judges that can be differentiated: relaxed tokens, two vocabularies aligned by bytes, guards."""
