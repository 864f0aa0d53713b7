"""`ravqa serve`: search and answers over HTTP and the Model Context Protocol."""
