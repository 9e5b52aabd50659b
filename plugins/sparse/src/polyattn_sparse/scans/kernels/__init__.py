"""The engine of scans: `steps` token by token, `chunks` in products of matrices."""
