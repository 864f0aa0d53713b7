"""Finding, reading and decoding images."""
