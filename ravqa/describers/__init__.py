"""What is seen in an image, as text: text-based vision for retrieval and for text-only readers."""
