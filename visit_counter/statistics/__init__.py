"""What is made of a visit besides its count: so far, whether it is counted at all. A client's address is never kept."""
