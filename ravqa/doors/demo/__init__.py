"""`ravqa demo`: a page on which people ask about their own photos."""
