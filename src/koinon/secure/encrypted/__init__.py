"""A secure sum of encrypted updates: CKKS by TenSEAL, with keys that the server never has."""
