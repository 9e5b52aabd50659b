"""Attention among tokens that are alike: buckets by hashing or centroids, clusters of queries."""
